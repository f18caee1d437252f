"""The packed stream of pretraining, against the batches of the original program."""

import json
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmo_model.lm_batches import Corpus, LmBatch, WordTable, packed_batches
from elmo_model.vocabulary import MARKS, Vocabulary


@pytest.fixture(scope="module")
def expected(shared):
    return json.loads((shared / "golden/bilm-data-expected/expected.json").read_text())


@pytest.fixture(scope="module")
def train_fixture(shared):
    folder = shared / "golden/bilm-tf-train"
    sentences = [line.split(" ") for line in (folder / "data.txt").read_text().split("\n")]
    return Vocabulary.read(folder / "vocab.txt"), sentences


def batches_of(sentences, table, batch_size, unroll_steps, bidirectional=True):
    sequences = Corpus.of(sentences, table).sequences()
    return list(packed_batches(sequences, table, batch_size, unroll_steps, bidirectional))


def read_inputs(batch: LmBatch, direction: int) -> list:
    return batch.words[batch.directions[direction].inputs_BT].tolist()


@pytest.mark.parametrize(("name", "direction"), [("forward", 0), ("reverse", 1)])
def test_characters_and_targets_equal_the_originals_batches(expected, name, direction):
    case = expected[f"lm_dataset_bs2_steps3_{name}"]
    sentences = [sentence.split(" ") for sentence in case["sentences"]]
    table = WordTable(Vocabulary(case["vocab"]), max_characters=5)
    # The record goes on with a second pass over the text.
    batches = batches_of(sentences * 3, table, 2, 3)[: len(case["batches"])]
    for batch, wanted in zip(batches, case["batches"], strict=True):
        assert read_inputs(batch, direction) == wanted["tokens_characters"]
        assert batch.directions[direction].targets_BT.tolist() == wanted["next_token_id"]


@pytest.mark.parametrize("max_characters", [10, None])
def test_a_whole_pass_over_the_reference_text_equals_the_original(
    expected, train_fixture, max_characters
):
    vocabulary, sentences = train_fixture
    wanted = expected["train_fixture_test_mode_bs2_steps10"]["batches"]
    batches = batches_of(sentences, WordTable(vocabulary, max_characters), 2, 10)
    assert len(batches) == len(wanted)
    key = "token_ids" if max_characters is None else "tokens_characters"
    for batch, values in zip(batches, wanted, strict=True):
        for direction, suffix in enumerate(["", "_reverse"]):
            assert read_inputs(batch, direction) == values[key + suffix]
            targets = batch.directions[direction].targets_BT.tolist()
            assert targets == values["next_token_id" + suffix]


def test_an_iterator_of_sentences_gives_the_same_batches_as_a_list(train_fixture):
    vocabulary, sentences = train_fixture
    listed = batches_of(sentences, WordTable(vocabulary, 10), 2, 10)
    table = WordTable(vocabulary, 10)
    streamed = list(packed_batches(map(table.sequence_of, iter(sentences)), table, 2, 10))
    assert len(listed) == len(streamed)
    for one, other in zip(listed, streamed, strict=True):
        for direction in (0, 1):
            assert read_inputs(one, direction) == read_inputs(other, direction)


def test_each_distinct_word_of_a_batch_is_spelled_once(train_fixture):
    vocabulary, sentences = train_fixture
    for batch in batches_of(sentences, WordTable(vocabulary, 50), 2, 10):
        spelled = [tuple(word) for word in batch.words.tolist()]
        assert len(spelled) == len(set(spelled))


sentence_lists = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "zebra"]), max_size=12), max_size=15
)


@given(sentence_lists, st.integers(1, 7))
def test_with_one_row_the_stream_is_the_text_itself(sentences, unroll_steps):
    vocabulary = Vocabulary([*MARKS, "a", "b", "c"])
    table = WordTable(vocabulary, max_characters=None)
    forward, targets = [], []
    for sentence in sentences:
        marked = vocabulary.ids_of(["<S>", *sentence, "</S>"]).tolist()
        forward += marked[:-1]
        targets += marked[1:]
    batches = batches_of(sentences, table, 1, unroll_steps)
    read = [read_inputs(batch, 0)[0] for batch in batches]
    seen = [batch.forward.targets_BT[0].tolist() for batch in batches]
    whole = len(forward) // unroll_steps * unroll_steps
    assert sum(read, []) == forward[:whole]
    assert sum(seen, []) == targets[:whole]


@given(sentence_lists, st.integers(1, 4), st.integers(1, 7))
def test_a_row_goes_on_where_its_last_batch_stopped(sentences, batch_size, unroll_steps):
    vocabulary = Vocabulary([*MARKS, "a", "b", "c"])
    batches = batches_of(sentences, WordTable(vocabulary, None), batch_size, unroll_steps)
    for direction, first in ((0, vocabulary.begin_id), (1, vocabulary.end_id)):
        for row in range(batch_size):
            read = sum((read_inputs(batch, direction)[row] for batch in batches), [])
            targets = sum(
                (batch.directions[direction].targets_BT[row].tolist() for batch in batches), []
            )
            # Either the sentence goes on with what was predicted, or a new one starts.
            for predicted, following in zip(targets, read[1:], strict=False):
                assert following in (predicted, first)


def test_text_that_does_not_fill_a_batch_gives_none(train_fixture):
    vocabulary, _ = train_fixture
    assert batches_of([["the"]], WordTable(vocabulary, 50), 2, 10) == []
    assert batches_of([], WordTable(vocabulary, 50), 2, 10) == []


def test_one_direction_has_no_backward_text(train_fixture):
    vocabulary, sentences = train_fixture
    batch = batches_of(sentences, WordTable(vocabulary, None), 2, 10, bidirectional=False)[0]
    assert batch.backward is None
    assert len(batch.directions) == 1
    assert (batch.num_rows, batch.num_tokens) == (2, 20)


def test_equal_seeds_give_equal_orders_and_epochs_differ(train_fixture):
    vocabulary, sentences = train_fixture
    corpus = Corpus.of(sentences * 5, WordTable(vocabulary, 50))

    def order(seed, epoch):
        return [sequence.tolist() for sequence in corpus.sequences(seed, epoch)]

    assert order(7, 0) == order(7, 0)
    assert order(7, 0) != order(7, 1)
    assert order(7, 0) != order(8, 0)
    assert sorted(order(7, 0)) == sorted(order(None, 0))


def test_the_endless_stream_passes_over_every_sentence_in_each_epoch(train_fixture):
    vocabulary, sentences = train_fixture
    corpus = Corpus.of(sentences, WordTable(vocabulary, 50))
    endless = list(islice(corpus.endless_sequences(seed=3), 2 * len(sentences)))
    for epoch in (endless[: len(sentences)], endless[len(sentences) :]):
        assert sorted(map(list, epoch)) == sorted(map(list, corpus.sequences()))


def test_an_empty_corpus_cannot_be_repeated(train_fixture):
    corpus = Corpus.of([], WordTable(train_fixture[0], 50))
    assert (corpus.num_sentences, corpus.num_tokens) == (0, 0)
    with pytest.raises(ValueError, match="no sentences"):
        next(corpus.endless_sequences(seed=1))


def test_a_corpus_counts_tokens_without_marks_and_one_prediction_more_a_sentence(train_fixture):
    vocabulary, sentences = train_fixture
    corpus = Corpus.of([*sentences, []], WordTable(vocabulary, 50))
    assert corpus.num_sentences == 6
    assert corpus.num_tokens == 134
    assert corpus.num_predictions == 140


def test_a_growing_table_keeps_what_it_knew():
    table = WordTable(Vocabulary([*MARKS, "a"]), max_characters=8)
    before = table.inputs_of(table.ids_of(["a", "<S>"]))
    table.inputs_of(table.ids_of([f"word{k}" for k in range(1000)]))
    assert table.inputs_of(table.ids_of(["a", "<S>"])).tolist() == before.tolist()
    assert np.unique(table.ids_of([f"word{k}" for k in range(1000)])).size == 1000
