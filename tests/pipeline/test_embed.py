"""The pure core: tokenised documents become rows, partition by partition, and none is lost."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import VectorConfig
from pipeline.embed import EmbeddedBatch, Embedder, token_window
from pipeline.errors import ClusterError
from pipeline.records import TOKEN_FIELDS, RejectedRow
from pipeline.schema import output_schema
from pipeline.token_window import BatchCounts, WindowError

DIM = 4


class WordLengthModel:
    """A stand-in whose vectors tell which words they came from; fails on chosen words."""

    dim = DIM
    vector_columns = ("vector",)

    def __init__(self, level, fails_on=(), infinite_on=()):
        self.level = level
        self.fails_on = set(fails_on)
        self.infinite_on = set(infinite_on)
        self.counts = BatchCounts()

    def vectors(self, window):
        if self.fails_on & {window.words[i] for i in window.word_ids.tolist()}:
            raise RuntimeError("a word that breaks the model")
        values = np.array(
            [np.inf if word in self.infinite_on else len(word) for word in window.words]
        )[window.word_ids]
        if self.level != "token":
            starts = np.cumsum(window.sentence_lengths) - window.sentence_lengths
            values = np.add.reduceat(values, starts)
        if self.level == "document":
            per_document = window.sentences_per_document
            values = np.add.reduceat(values, np.cumsum(per_document) - per_document)
        return np.repeat(values, DIM).reshape(-1, 1, DIM).astype(np.float16)


def tokenised(documents):
    """Documents {id: (partition, [[token, ...], ...])} as a table of the tokenised form."""
    rows = []
    for number, (name, (lang, sentences)) in enumerate(documents.items()):
        tokens = [token for sentence in sentences for token in sentence]
        starts = np.cumsum([0, *(len(token) + 1 for token in tokens)])[:-1].tolist()
        rows.append(
            {
                "id": name,
                "content_hash": bytes([number]) * 16,
                "_source": "s.jsonl",
                "_offset": number * 100,
                "lang": lang,
                "title": name.upper(),
                "tokens": tokens,
                "sentence_lengths": [len(sentence) for sentence in sentences],
                "token_starts": starts,
                "token_ends": [s + len(t) for s, t in zip(starts, tokens, strict=True)],
                "num_cut_tokens": 0,
                "num_split_sentences": 0,
            }
        )
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("content_hash", pa.binary(16), nullable=False),
            pa.field("_source", pa.string()),
            pa.field("_offset", pa.int64()),
            pa.field("lang", pa.string()),
            pa.field("title", pa.string()),
            *TOKEN_FIELDS,
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def embedder(level, model=None, window_tokens=6):
    schema = output_schema(
        VectorConfig(level=level), DIM, ("vector",), [pa.field("title", pa.string())]
    )
    return Embedder(model or WordLengthModel(level), schema, ("lang",), level, window_tokens)


DOCUMENTS = {
    "a": ("en", [["one", "two"], ["three"]]),
    "b": ("de", [["eins"]]),
    "c": ("en", [["four", "five", "six"], ["seven", "eight"]]),
    "d": (None, [["?"]]),
}


def _collect(results):
    rows, rejected = [], []
    for result in results:
        if isinstance(result, RejectedRow):
            rejected.append(result)
        else:
            assert isinstance(result, EmbeddedBatch)
            assert result.num_documents == len(set(result.rows["id"].to_pylist()))
            for row in result.rows.to_pylist():
                rows.append({**row, "lang": result.partition[0]})
    return rows, rejected


def test_each_document_has_one_row_in_its_partition():
    rows, rejected = _collect(embedder("document").embed(tokenised(DOCUMENTS)))
    assert not rejected
    found = {row["id"]: (row["lang"], row["title"], row["vector"][0]) for row in rows}
    assert found == {
        "a": ("en", "A", 11.0),
        "b": ("de", "B", 4.0),
        "c": ("en", "C", 21.0),
        "d": (None, "D", 1.0),
    }
    assert {row["id"]: row["content_hash"][0] for row in rows} == {"a": 0, "b": 1, "c": 2, "d": 3}


def test_partitions_come_one_after_another_so_that_one_file_is_open_at_a_time():
    partitions = [result.partition for result in embedder("document").embed(tokenised(DOCUMENTS))]
    changes = sum(a != b for a, b in zip(partitions, partitions[1:], strict=False))
    assert changes == len(set(partitions)) - 1


def test_sentence_rows_carry_their_place_in_the_text():
    rows, _ = _collect(embedder("sentence").embed(tokenised(DOCUMENTS)))
    found = [
        (row["sentence_index"], row["start"], row["end"], row["vector"][0])
        for row in rows
        if row["id"] == "c"
    ]
    # "four five six seven eight"
    assert found == [(0, 0, 13, 11.0), (1, 14, 25, 10.0)]


def test_token_rows_carry_the_token_and_its_place():
    rows, _ = _collect(embedder("token").embed(tokenised(DOCUMENTS)))
    found = [
        (row["sentence_index"], row["token_index"], row["token"], row["start"], row["end"])
        for row in rows
        if row["id"] == "a"
    ]
    assert found == [(0, 0, "one", 0, 3), (0, 1, "two", 4, 7), (1, 2, "three", 8, 13)]


@pytest.mark.parametrize("window_tokens", [1, 5, 1000])
def test_the_window_changes_no_vector(window_tokens):
    rows, _ = _collect(embedder("token", None, window_tokens).embed(tokenised(DOCUMENTS)))
    reference, _ = _collect(embedder("token").embed(tokenised(DOCUMENTS)))
    assert sorted(map(str, rows)) == sorted(map(str, reference))


def test_a_document_that_breaks_the_model_is_rejected_and_its_neighbours_are_not():
    model = WordLengthModel("document", fails_on={"seven"})
    rows, rejected = _collect(embedder("document", model, 1000).embed(tokenised(DOCUMENTS)))
    assert {row["id"] for row in rows} == {"a", "b", "d"}
    (row,) = rejected
    assert (row.id, row.source, row.offset, row.stage) == ("c", "s.jsonl", 200, "embed")
    assert (row.code, row.excerpt) == ("embed_failed", "four five six seven eight")
    assert "a word that breaks the model" in row.message


def test_neighbours_that_break_the_model_are_both_rejected_and_the_others_are_not():
    model = WordLengthModel("document", fails_on={"one", "four"})  # a and c, side by side
    rows, rejected = _collect(embedder("document", model, 1000).embed(tokenised(DOCUMENTS)))
    assert {row["id"] for row in rows} == {"b", "d"}
    assert {row.id for row in rejected} == {"a", "c"}


def test_a_model_that_fails_on_everything_is_an_error():
    model = WordLengthModel("document", fails_on={"one", "eins", "four", "?"})
    with pytest.raises(RuntimeError, match="breaks the model"):
        list(embedder("document", model, 1000).embed(tokenised(DOCUMENTS)))


class AheadModel(WordLengthModel):
    """Takes windows before it is asked for their vectors, as one on a GPU; notes what it did."""

    def __init__(self, level, fails_at_start=(), **faults):
        super().__init__(level, **faults)
        self.windows_ahead = 1
        self.fails_at_start = set(fails_at_start)
        self.waiting = 0
        self.most_waiting = 0

    def start(self, window):
        if self.fails_at_start & set(window.words):
            raise RuntimeError("a window that cannot be started")
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)

        def finish():
            self.waiting -= 1
            return self.vectors(window)

        return finish


@pytest.mark.parametrize("level", ["document", "sentence", "token"])
def test_a_window_is_started_before_the_vectors_of_the_last_are_taken(level):
    model = AheadModel(level, infinite_on={"eins"})
    rows, rejected = _collect(embedder(level, model).embed(tokenised(DOCUMENTS)))
    plain = WordLengthModel(level, infinite_on={"eins"})
    reference, reference_rejected = _collect(embedder(level, plain).embed(tokenised(DOCUMENTS)))
    assert rows == reference
    assert [row.id for row in rejected] == [row.id for row in reference_rejected] == ["b"]
    assert (model.most_waiting, model.waiting) == (2, 0)


@pytest.mark.parametrize("when", ["fails_at_start", "fails_on"])
def test_what_fails_among_windows_in_flight_is_rejected_alone(when):
    model = AheadModel("document", **{when: {"seven"}})
    rows, rejected = _collect(embedder("document", model, 8).embed(tokenised(DOCUMENTS)))
    found = {row["id"] for row in rows}
    # A model that fails only as it starts fails no more when it is asked for the halves.
    assert (found, [row.id for row in rejected]) == (
        ({"a", "b", "d"}, ["c"]) if when == "fails_on" else ({"a", "b", "c", "d"}, [])
    )


class SmallMemoryModel(WordLengthModel):
    """Does not take a window in which one of the chosen words stands."""

    def vectors(self, window):
        if self.fails_on & {window.words[i] for i in window.word_ids.tolist()}:
            raise WindowError("out_of_memory", "17 tokens do not fit into memory")
        return super().vectors(window)


def test_a_document_that_does_not_fit_into_memory_is_rejected_and_its_neighbours_are_not():
    model = SmallMemoryModel("document", fails_on={"eins"})
    rows, rejected = _collect(embedder("document", model, 1000).embed(tokenised(DOCUMENTS)))
    assert {row["id"] for row in rows} == {"a", "c", "d"}
    assert [(row.id, row.code) for row in rejected] == [("b", "out_of_memory")]
    assert "17 tokens" in rejected[0].message


def test_memory_that_holds_no_document_at_all_is_an_error_that_says_what_to_do():
    model = SmallMemoryModel("document", fails_on={"one", "eins", "four", "?"})
    with pytest.raises(ClusterError, match="none of 4 documents .* lower batch.max_tokens"):
        list(embedder("document", model, 1000).embed(tokenised(DOCUMENTS)))


@pytest.mark.parametrize("level", ["document", "sentence", "token"])
def test_a_document_with_an_infinite_element_is_rejected_whole(level):
    model = WordLengthModel(level, infinite_on={"three"})
    rows, rejected = _collect(embedder(level, model, 1000).embed(tokenised(DOCUMENTS)))
    assert {row["id"] for row in rows} == {"b", "c", "d"}
    assert [(row.id, row.code) for row in rejected] == [("a", "non_finite_vector")]


def test_tokens_become_ids_into_distinct_words():
    window = token_window(tokenised({"x": ("en", [["a", "b", "a"], ["b"]])}))
    assert [window.words[i] for i in window.word_ids] == ["a", "b", "a", "b"]
    assert len(window.words) == 2
    assert window.sentence_lengths.tolist() == [3, 1]
    assert window.sentences_per_document.tolist() == [2]
