"""Preparing a corpus for pretraining: what is held out, what is kept, and what is found again."""

import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from elmo_model.vocabulary import Vocabulary, count_words
from pipeline.config import build
from pipeline.errors import CorruptFileError, EmptySourceError, SourceError
from pipeline.pretraining.config import PretrainConfig
from pipeline.pretraining.prepare import GroupText, local, prepare_text
from pipeline.pretraining.shards import read_unit
from pipeline.pretraining.vocabulary import make_vocabulary
from pipeline.records import REJECTED_SCHEMA
from pipeline.rejected import NUM_SHOWN
from pipeline.storage import open_storage
from tests.pipeline.toy_corpus import toy_config, write_toy_corpus


class Corpus:
    """A prepared corpus, its text as sentences."""

    def __init__(self, source, folder, share=0.1, run_tasks=local):
        config = build(PretrainConfig, toy_config(source, folder / "model"), "test")
        self.storage = open_storage(str(folder / "work"))
        self.text = prepare_text(self.storage, "text", config.source, config.text, share, run_tasks)

    def sentences(self, shards):
        found = []
        for shard in shards:
            for unit in range(len(shard.unit_tokens)):
                part = read_unit(self.storage, shard, unit)
                words = [part.words[index] for index in part.ids_N.tolist()]
                for length in part.sentence_lengths_S.tolist():
                    found.append(" ".join(words[:length]))
                    words = words[length:]
                assert not words
        return found

    @property
    def train(self):
        return self.sentences(self.text.train)

    @property
    def held_out(self):
        return self.sentences(self.text.held_out)


def write(path, texts, first_id=0):
    rows = [{"id": f"d{first_id + k}", "text": text} for k, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def toy(tmp_path):
    return write_toy_corpus(tmp_path / "corpus.jsonl")


def test_sentences_and_words_come_through_in_their_order(tmp_path):
    source = write(tmp_path / "c.jsonl", ["One cat. Two dogs here.", "Three cats!", "No birds?"])
    corpus = Corpus(source, tmp_path, share=0.0)
    assert corpus.train == ["One cat .", "Two dogs here .", "Three cats !", "No birds ?"]
    assert corpus.text.num_train_documents == 3
    assert sum(shard.num_tokens for shard in corpus.text.train) == 13


def test_about_the_configured_share_is_held_out_and_nothing_is_lost(toy, tmp_path):
    corpus = Corpus(toy, tmp_path, share=0.2)
    text = corpus.text
    assert text.num_train_documents + text.num_held_out_documents == 300
    # Three standard deviations of a binomial draw of 300 with 0.2 are 21.
    assert 39 <= text.num_held_out_documents <= 81
    assert len(corpus.train) + len(corpus.held_out) == 300 * 5
    assert sum(shard.num_sentences for shard in text.train) == len(corpus.train)


def test_the_choice_depends_on_the_text_alone(toy, tmp_path):
    lines = toy.read_text().splitlines()
    renamed = tmp_path / "renamed.jsonl"
    rows = [json.loads(line) | {"id": f"x{k}"} for k, line in enumerate(reversed(lines))]
    renamed.write_text("".join(json.dumps(row) + "\n" for row in rows[:200]))
    whole, part = Corpus(toy, tmp_path), Corpus(renamed, tmp_path)
    assert set(part.held_out) <= set(whole.held_out)
    assert 0 < part.text.num_held_out_documents < whole.text.num_held_out_documents


def test_copies_of_a_text_are_on_one_side(tmp_path):
    texts = [f"Document number {k} tells its story." for k in range(50)] * 3
    corpus = Corpus(write(tmp_path / "c.jsonl", texts), tmp_path, share=0.3)
    assert corpus.text.num_held_out_documents % 3 == 0
    assert not set(corpus.held_out) & set(corpus.train)


def test_one_document_is_held_out_even_if_the_share_is_tiny(toy, tmp_path):
    corpus = Corpus(toy, tmp_path, share=1e-9)
    assert corpus.text.num_held_out_documents == 1
    assert len(corpus.train) + len(corpus.held_out) == 300 * 5


def test_a_long_document_is_cut_between_its_sentences(tmp_path):
    long = " ".join(f"Sentence number {k} of a long story." for k in range(30_000))
    source = write(tmp_path / "c.jsonl", ["A short one.", long, "Another short one."])
    corpus = Corpus(source, tmp_path, share=0.0)
    assert len(corpus.train) == 30_002
    assert corpus.train[1] == "Sentence number 0 of a long story ."
    assert corpus.train[30_000] == "Sentence number 29999 of a long story ."
    units = [tokens for shard in corpus.text.train for tokens in shard.unit_tokens]
    assert len(units) >= 24
    assert max(units) < 1.1 * (1 << 13)


def test_text_that_is_prepared_already_is_not_read_again(toy, tmp_path):
    first = Corpus(toy, tmp_path)

    def refuse(task, groups):
        raise AssertionError("the corpus was read again")

    assert Corpus(toy, tmp_path, run_tasks=refuse).text == first.text
    with toy.open("a") as file:
        file.write(json.dumps({"id": "new", "text": "A new story."}) + "\n")
    with pytest.raises(AssertionError, match="read again"):
        Corpus(toy, tmp_path, run_tasks=refuse)
    assert sum("new story" in sentence for sentence in Corpus(toy, tmp_path, 0.0).train) == 1


def test_text_of_which_a_file_is_gone_is_prepared_anew(toy, tmp_path):
    first = Corpus(toy, tmp_path)
    first.storage.delete(first.text.train[0].path)
    again = Corpus(toy, tmp_path)
    assert again.text == first.text
    assert len(again.train) == len(again.sentences(first.text.train))


def test_the_order_is_that_of_the_corpus_whichever_task_ends_first(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(4):
        write(folder / f"{number}.jsonl", [f"Story {number} a.", f"Story {number} b."], number * 2)

    def last_first(task, groups):
        yield from [task(group) for group in reversed(groups)]

    forward, backward = tmp_path / "forward", tmp_path / "backward"
    assert Corpus(folder, forward, 0.0).train == Corpus(folder, backward, 0.0, last_first).train


def test_what_a_task_is_given_and_made_may_come_from_another_process(toy, tmp_path):
    with toy.open("a") as file:
        file.write("{\n")

    def elsewhere(task, groups):
        for group in groups:
            found = pickle.loads(pickle.dumps(task))(pickle.loads(pickle.dumps(group)))
            yield GroupText.from_json(found.to_json())

    here, there = tmp_path / "here", tmp_path / "there"
    assert Corpus(toy, here).text == Corpus(toy, there, run_tasks=elsewhere).text


def test_the_vocabulary_is_counted_without_the_held_out_text(toy, tmp_path):
    corpus = Corpus(toy, tmp_path)
    counts = count_words(sentence.split(" ") for sentence in corpus.train)

    def vocabulary(**values):
        config = build(PretrainConfig, {**toy_config(toy, tmp_path), "vocabulary": values}, "test")
        return make_vocabulary(config.vocabulary, corpus.storage, corpus.text)

    words, covered = vocabulary(min_count=1)
    assert words == Vocabulary.from_counts(counts)
    numbers = {word for word in words.words if word.isdigit()}
    assert len(numbers) == corpus.text.num_train_documents
    assert covered == 1
    rare, covered = vocabulary(min_count=2)
    assert not [word for word in rare.words if word.isdigit()]
    assert 0.9 < covered < 1
    assert vocabulary(max_size=10)[0] == Vocabulary.from_counts(counts, 3, 10)
    (tmp_path / "words.txt").write_text("<S>\n</S>\n<UNK>\ncat\n")
    given, covered = vocabulary(file=str(tmp_path / "words.txt"))
    assert given.words == ("<S>", "</S>", "<UNK>", "cat")
    assert 0 < covered < 0.1
    with pytest.raises(SourceError, match="lower vocabulary.min_count"):
        vocabulary(min_count=10**6)


def test_a_corpus_of_one_text_cannot_be_trained_on(tmp_path):
    source = write(tmp_path / "c.jsonl", ["The same text.", "The same text."])
    with pytest.raises(SourceError, match="at least two different documents"):
        Corpus(source, tmp_path)


def test_rejected_rows_are_counted_by_reason(tmp_path):
    source = write(tmp_path / "c.jsonl", ["One text.", "", "Two texts.", "Three texts."])
    text = Corpus(source, tmp_path).text
    assert text.rejected.by_code == {"empty_text": 1}
    assert text.num_train_documents + text.num_held_out_documents == 3


def test_all_rejected_rows_are_in_a_file_and_the_first_of_each_reason_are_kept(tmp_path):
    rows = [json.dumps({"id": f"d{k}", "text": f"Story {k}."}) for k in range(6)]
    bad = ["{", *(json.dumps({"id": f"x{k}", "text": ""}) for k in range(5))]
    (tmp_path / "c.jsonl").write_text("\n".join([*rows, *bad]) + "\n")
    corpus = Corpus(tmp_path / "c.jsonl", tmp_path)
    text = corpus.text
    assert text.num_rows == 12
    assert text.rejected.by_code == {"empty_text": 5, "bad_json": 1}
    assert len(text.rejected.shown) == NUM_SHOWN + 1
    (folder,) = text.rejected_folders
    (file,) = corpus.storage.list_files(folder)
    with corpus.storage.open_input(file.path) as source:
        found = pq.read_table(source)
    assert found.schema.equals(REJECTED_SCHEMA)
    offset = len("\n".join(rows)) + 1
    assert (found["code"][0].as_py(), found["offset"][0].as_py()) == ("bad_json", offset)
    assert found["id"].to_pylist() == [None, "x0", "x1", "x2", "x3", "x4"]
    # Text that is prepared already tells the same.
    assert Corpus(tmp_path / "c.jsonl", tmp_path).text == text


def test_a_corpus_of_which_everything_is_rejected_says_why(tmp_path):
    source = write(tmp_path / "c.jsonl", ["", "", " "])
    with pytest.raises(
        EmptySourceError, match=r"3 of 3 rows were rejected \(.*empty_text"
    ) as error:
        Corpus(source, tmp_path)
    assert f"{source}, offset 0: " in str(error.value)
    folder = tmp_path / "work/text"
    (file,) = folder.glob("*/rejected/*.parquet")
    assert str(file.parent) in str(error.value)
    assert pq.read_table(file).num_rows == 3


def test_units_of_equal_words_are_read_each_by_itself(tmp_path):
    source = write(tmp_path / "c.jsonl", [" ".join(["buffalo"] * 50_000)] * 2)
    corpus = Corpus(source, tmp_path, share=0.0)
    (shard,) = corpus.text.train
    assert len(shard.unit_tokens) > 5
    assert set(" ".join(corpus.train).split(" ")) == {"buffalo"}
    assert sum(map(len, (sentence.split(" ") for sentence in corpus.train))) == 100_000


def test_a_damaged_unit_is_an_error_that_says_what_to_do(toy, tmp_path):
    corpus = Corpus(toy, tmp_path, share=0.0)
    (shard,) = corpus.text.train
    path = tmp_path / "work" / shard.path
    data = path.read_bytes()
    start = shard.unit_bytes[0]
    wrong = [
        data[:start] + bytes(len(data) - start),
        # Another unit's text, and a file that was cut.
        data[:start] + data[: shard.unit_bytes[0]],
        data[:-10],
    ]
    for damaged in wrong:
        path.write_bytes(damaged)
        assert len(read_unit(corpus.storage, shard, 0).ids_N) == shard.unit_tokens[0]
        with pytest.raises(CorruptFileError, match=shard.path):
            read_unit(corpus.storage, shard, 1)


def test_text_of_another_version_is_never_read(toy, tmp_path):
    first = Corpus(toy, tmp_path)
    manifest = next((tmp_path / "work/text").glob("*/text.json"))
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(values | {"version": 1}))
    with pytest.raises(CorruptFileError, match="version 2, found.*version 1.*prepared anew"):
        Corpus(toy, tmp_path)
    manifest.unlink()
    assert Corpus(toy, tmp_path).text == first.text


def test_shards_are_arrow_streams_one_after_another(toy, tmp_path):
    corpus = Corpus(toy, tmp_path, share=0.0)
    (shard,) = corpus.text.train
    with (tmp_path / "work" / shard.path).open("rb") as file:
        tables = [pa.ipc.open_stream(file).read_all() for _ in shard.unit_tokens]
        assert file.read() == b""
    words = [" ".join(tokens) for table in tables for tokens in table["tokens"].to_pylist()]
    assert " ".join(words) == " ".join(corpus.train)
