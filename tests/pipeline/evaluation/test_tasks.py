"""Each task on a handful of items whose right score is known by hand, and its files' traps."""

import json
import math

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.evaluation.classification import Classification, held_out_split, read_table
from pipeline.evaluation.documents import CHINESE, WORDS
from pipeline.evaluation.part_of_speech import MAX_TRAIN_TOKENS, PartOfSpeech, read_conllu
from pipeline.evaluation.probe import probe
from pipeline.evaluation.retrieval import (
    Collection,
    Retrieval,
    read_beir,
    read_cranfield,
    read_scifact,
)
from pipeline.evaluation.similarity import Similarity
from pipeline.evaluation.systems import Lexical, RandomWords, Vectors
from pipeline.evaluation.word_vectors import Analogies, WordSimilarity
from pipeline.evaluation.words_in_context import WordsInContext, best_threshold


class Given:
    """A system whose vectors stand in a table, by the first token of a document or by the word."""

    def __init__(self, vectors):
        self.vectors = vectors

    def documents(self, documents, num_fitted):
        return self.words([document[0][0] for document in documents])

    def tokens(self, documents, positions):
        flat = [word for document in documents for sentence in document for word in sentence]
        return self.words([flat[place] for place in positions])

    def words(self, words):
        return [Vectors("given", "layer", np.array([self.vectors[w] for w in words], np.float32))]


def values_of(outcome):
    """{metric: {row: score}}."""
    return {
        table.metric: {
            row.name: float(row.statistic.resampled(np.arange(row.statistic.num_items)[None])[0])
            for row in table.rows
        }
        for table in outcome.tables
    }


@pytest.fixture
def beir(tmp_path):
    (tmp_path / "qrels").mkdir()
    texts = {"d1": "alpha about cats", "d2": "beta about dogs", "d3": "gamma about birds"}
    rows = [{"_id": name, "title": "", "text": text} for name, text in texts.items()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    queries = [{"_id": "q1", "text": "query of cats"}, {"_id": "q2", "text": "nothing relevant"}]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (tmp_path / "qrels/test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td3\t2\nq1\td2\t0\n"
    )
    return tmp_path


def test_retrieval_scores_are_those_worked_out_by_hand(beir):
    task = Retrieval.of(read_beir(beir), WORDS, None)
    assert len(task.queries) == 1  # q2 has no relevant document
    vectors = {"alpha": [2, 0], "beta": [1, 1], "gamma": [-3, -1], "query": [2, 0.5]}
    found = values_of(task.measure([Given(vectors), Lexical()]))
    # The order is d1, d2, d3: relevant, not, relevant.
    expected = (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert found["nDCG@10"]["given"] == pytest.approx(expected)
    assert found["recall@100"] == {"BM25": 1, "given": 1, "TF-IDF": 1}
    assert found["nDCG@10"]["BM25"] == pytest.approx(expected)  # "cats" is in d1 only


def test_documents_of_one_score_come_by_their_number_up_to_the_depth():
    # 200 documents in two groups, and more queries than are worked on at once.
    vectors = {"far": [-1, 0], "near": [1, 0], "query": [1, 0]}
    documents = [[["far" if number < 150 else "near"]] for number in range(200)]
    count = 70
    task = Retrieval(documents, [[["query"]]] * count, [{49}] * 69 + [{50}], is_chinese=False)
    found = values_of(task.measure([Given(vectors)]))
    # The 50 near ones, then the far ones 0 to 49: document 50 is the first that is left out.
    assert found["recall@100"]["given"] == pytest.approx((count - 1) / count)
    assert found["nDCG@10"]["given"] == 0


def test_bm25_ranks_chinese_by_characters_that_words_do_not_share(tmp_path):
    task = Retrieval(
        documents=[[["北京", "大学"]], [["上海", "医院"]], [["广州", "机场"]]],
        queries=[[["医", "生"]]],
        relevant=[{1}],
        is_chinese=True,
    )
    assert values_of(task.measure([]))["nDCG@10"]["BM25"] == 1


def test_a_judgement_that_is_no_number_is_named_with_its_row(beir):
    with (beir / "qrels/test.tsv").open("a") as file:
        file.write("q2\td1\tyes\n")
    with pytest.raises(SourceError, match=r"test\.tsv: row 4: score is 'yes'; expected a number"):
        read_beir(beir)


def test_a_part_of_a_collection_keeps_what_answers_its_queries():
    numbers = [str(number) for number in range(50)]
    whole = Collection(
        documents=dict.fromkeys(numbers, "text"),
        queries=dict.fromkeys(numbers, "query"),
        relevant={number: {numbers[-1 - place]} for place, number in enumerate(numbers)},
    )
    part = whole.part(2)
    assert list(part.queries) == ["0", "49"]
    assert {"49", "0"} <= set(part.documents)
    assert len(part.documents) == 2 + 2 * 10
    assert whole.part(50) is whole


def test_cranfield_judgements_count_queries_by_their_order(tmp_path):
    (tmp_path / "docs").write_text(
        ".I 1\n.T\na wing\n.A\nnobody\n.W\nlift of\na wing\n.I 2\n.W\nheat\n"
    )
    (tmp_path / "queries").write_text(".I 004\n.W\nwhat is lift\n.I 010\n.W\nwhat is heat\n")
    (tmp_path / "judged").write_text("1 1 2\n2 2 3 \n2 1 -1\n")
    found = read_cranfield(tmp_path / "docs", tmp_path / "queries", tmp_path / "judged")
    assert found.documents == {"1": "a wing\nlift of a wing", "2": "heat"}
    assert found.queries == {"1": "what is lift", "2": "what is heat"}
    # A code says how relevant a document is; those of no interest are not listed.
    assert found.relevant == {"1": {"1"}, "2": {"1", "2"}}


def test_abstracts_of_scifact_are_read_out_of_their_quotation_marks(tmp_path):
    (tmp_path / "corpus.csv").write_text(
        'doc_id,title,abstract,structured\n7,A title,"[\'One.\'\n ""It\'s two.""]",False\n'
    )
    (tmp_path / "claims.csv").write_text("id,claim,cited_doc_ids\n1,It is,[7 9]\n1,It is,[7 9]\n")
    found = read_scifact(tmp_path / "corpus.csv", tmp_path / "claims.csv")
    assert found.documents == {"7": "A title\nOne.\nIt's two."}
    assert found.relevant == {"1": {"7", "9"}}


def test_similarity_is_the_rank_correlation_of_centred_cosines(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("sentence1\tsentence2\tscore\na\tb\t5\na\tc\t3\na\td\t1\n")
    task = Similarity.read(path, None, WORDS, None)
    near_to_far = {"a": [1, 0], "b": [1, 0.1], "c": [-1, 0.5], "d": [-3, -2]}
    assert values_of(task.measure([Given(near_to_far)])) == {"Spearman": {"given": 1}}
    path.write_text("sentence1\tsentence2\tscore\na\tb\tfive\n")
    with pytest.raises(SourceError, match="row 1: score is 'five'; expected a number"):
        Similarity.read(path, None, WORDS, None)


def test_the_threshold_is_the_one_that_is_right_most_often():
    cosines = np.array([0.9, 0.8, 0.7, 0.6])
    assert 0.7 < best_threshold(cosines, np.array([True, True, False, False])) < 0.8
    assert best_threshold(cosines, np.zeros(4, bool)) == math.inf
    assert best_threshold(cosines, np.ones(4, bool)) == -math.inf
    # Pairs of one cosine cannot be told apart.
    assert best_threshold(np.ones(4), np.array([True, True, True, False])) == -math.inf


def wic(folder, name, lines, gold):
    (folder / f"{name}.data.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / f"{name}.gold.txt").write_text("".join(f"{mark}\n" for mark in gold))
    return folder / f"{name}.data.txt", folder / f"{name}.gold.txt"


def test_words_in_context_compares_the_words_at_the_named_places(tmp_path):
    lines = ["x\tN\t0-1\tup now .\tgo up", "x\tN\t1-0\tgo up\tdown it goes"]
    parts = [wic(tmp_path, name, lines, "TF") for name in ("train", "dev")]
    task = WordsInContext.read(*parts, None)
    vectors = {"up": [1, 0], "down": [-1, 0.1]}
    assert values_of(task.measure([Given(vectors)])) == {"accuracy": {"given": 1}}
    one_hot = values_of(task.measure([Lexical()]))["accuracy"]["one-hot"]
    assert one_hot == 1  # the same form, the same meaning: here that is right


@pytest.mark.parametrize("line", ["x\tN\t0-9\ta b\tc d", "x\tN\t0\ta\tb", "x\tN\t0-0\tonly one"])
def test_a_place_outside_of_its_sentence_is_an_error_that_names_the_line(line, tmp_path):
    data, gold = wic(tmp_path, "train", [line], "T")
    with pytest.raises(SourceError, match="line 1"):
        WordsInContext.read((data, gold), (data, gold), None)


def test_words_and_analogies_are_scored_as_their_papers_do(tmp_path):
    pairs = ["man\tking\t9", "man\tqueen\t1"]
    vectors = {"man": [1, 0], "king": [1, 1], "woman": [-1, 0], "queen": [-1, 1], "x": [0, -2]}
    vectors |= {"big": [2, 5], "bigger": [3, 5], "old": [2, -7], "older": [3, -7]}
    task = WordSimilarity.read("pairs", pairs, None)
    assert values_of(task.measure([Given(vectors)])) == {"Spearman": {"given": 1}}
    path = tmp_path / "questions.txt"
    path.write_text(": family\nman king woman queen\n: gram5\nbig bigger old older\n")
    found = values_of(Analogies.read(path, None).measure([Given(vectors)]))
    assert found == {"accuracy of meaning": {"given": 1}, "accuracy of form": {"given": 1}}


def test_a_file_without_a_pair_or_a_question_is_named(tmp_path):
    path = tmp_path / "empty.txt"
    path.write_text(": family\n")
    with pytest.raises(SourceError, match=r"empty\.txt: has no question"):
        Analogies.read(path, None)
    with pytest.raises(SourceError, match="pairs: has no line"):
        WordSimilarity.read("pairs", [], None)


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 0, 1], [0] * 9 + [1]])
def test_a_probe_learns_from_items_too_few_to_choose_a_strength(labels):
    labels_N = np.array(labels)
    vectors = np.stack([1.0 - labels_N, labels_N], axis=1).astype(np.float32)
    assert probe(vectors, labels_N, vectors[[0, 1]]).predicted_N[0] == 0


def test_a_linear_probe_learns_dense_and_sparse_alike():
    words = ["red", "green", "blue"]
    documents = [[[words[number % 3], "thing"]] for number in range(90)]
    labels = np.arange(90) % 3
    for system in (Lexical(), RandomWords(16)):
        (line,) = system.documents(documents, 60)
        found = probe(line.matrix[:60], labels[:60], line.matrix[60:])
        assert found.predicted_N.tolist() == labels[60:].tolist()
        assert found.converged


def test_equal_texts_are_one_and_never_on_both_sides(tmp_path):
    path = tmp_path / "news.jsonl"
    rows = [{"text": f"news {number % 40}", "label": number % 2} for number in range(200)]
    path.write_text("\n".join(map(json.dumps, rows)))
    labelled = read_table(path)
    assert len(labelled) == 40
    train, test = held_out_split(labelled)
    assert not {text for text, _ in train} & {text for text, _ in test}
    assert len(train) + len(test) == 40


def test_a_class_that_was_never_learned_counts_as_wrong():
    train = [("good", "p"), ("bad", "n")] * 10
    task = Classification.of(train, [("good", "p"), ("bad", "unknown")], None)
    found = values_of(task.measure([Lexical()]))
    assert found == {"accuracy": {"TF-IDF": 0.5}}
    with pytest.raises(SourceError, match="expected two or more"):
        Classification.of([("a", "x")], [("b", "x")], None)


def test_ranges_and_empty_nodes_of_conllu_are_left_out(tmp_path):
    path = tmp_path / "x.conllu"
    path.write_text(
        "# text = vámonos\n1-2\tvámonos\t_\t_\n1\tvamos\t_\tVERB\n2\tnos\t_\tPRON\n"
        "2.1\tx\t_\tX\n\n\n1\tHi\t_\tINTJ\n"
    )
    assert read_conllu(path) == [[("vamos", "VERB"), ("nos", "PRON")], [("Hi", "INTJ")]]
    path.write_text("1 word\n")
    with pytest.raises(SourceError, match="line 1 has 1 columns"):
        read_conllu(path)


def test_no_more_tokens_are_learned_from_than_the_limit(tmp_path):
    # Long sentences at the places that an even choice takes: the first and the last.
    long, short = 30_000, 100
    texts = []
    for length in (short, *[short] * 300, long, long):
        texts.append("".join(f"{n}\tw\t_\t{'XY'[n % 2]}\n" for n in range(1, length + 1)))
    path = tmp_path / "x.conllu"
    path.write_text("\n".join(texts))
    task = PartOfSpeech.read(path, path, None)
    assert sum(map(len, task.train)) <= MAX_TRAIN_TOKENS
    path.write_text("1\tw\t_\tX\n")
    with pytest.raises(SourceError, match="one tag in 1 sentences"):
        PartOfSpeech.read(path, path, None)


def test_tags_are_scored_over_tokens_and_sampled_by_sentence():
    sentences = [[("the", "DET"), ("cat", "NOUN")], [("the", "DET")]] * 8
    outcome = PartOfSpeech(sentences, [[("the", "DET"), ("dog", "VERB")]]).measure([Lexical()])
    assert values_of(outcome) == {"accuracy": {"one-hot": 0.5}}
    assert outcome.num_items == 1


def test_chinese_is_cut_into_words_by_the_projects_tokeniser(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"sentence1": "我爱北京", "sentence2": "我爱上海", "score": 3}))
    task = Similarity.read(path, None, CHINESE, None)
    assert all(len(sentence) > 1 for document in task.documents for sentence in document)
