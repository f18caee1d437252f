"""Text packed by step against the batches of training."""

import numpy as np
import pytest
import torch

from elmo_model.lm_batches import WordTable, packed_batches
from elmo_model.packed_text import PackedText, carried_texts, sentence_texts
from elmo_model.vocabulary import MARKS, Vocabulary

WORDS = [f"w{number}" for number in range(40)]


@pytest.fixture(params=[None, 12], ids=["word input", "characters"])
def table(request):
    return WordTable(Vocabulary([*MARKS, *WORDS[:30]]), request.param)


def sentences(table, num_sentences=50, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 12, num_sentences)
    return [table.sequence_of([WORDS[i] for i in rng.integers(0, 40, n)]) for n in lengths]


def grids(texts, num_rows):
    """Words read and targets of carried texts, (S, B, T), in one piece."""
    parts = []
    for text in texts:
        steps = len(text.layout.live_rows_T)
        read = text.words.numpy()[text.index_SN]
        read = read.reshape(len(read), -1, *text.words.shape[1:])
        shape = (len(read), num_rows, steps)
        words = np.zeros((*shape, *read.shape[2:]), np.int64)
        targets = np.zeros(shape, np.int64)
        words[:, text.layout.row_N, text.layout.step_N] = read
        targets[:, text.layout.row_N, text.layout.step_N] = text.targets_SN
        parts.append((words, targets))
    return [np.concatenate(arrays, axis=2) for arrays in zip(*parts, strict=True)]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("max_steps", [1, 5, 1000])
@pytest.mark.parametrize("num_rows", [1, 2, 7])
def test_many_steps_at_once_read_what_the_original_reads_one_by_one(
    table, num_rows, max_steps, bidirectional
):
    sequences = sentences(table)
    single = packed_batches(sequences, table, num_rows, 1, bidirectional)
    expected = grids(map(PackedText.of_batch, single), num_rows)
    texts = list(carried_texts(iter(sequences), table, num_rows, max_steps, bidirectional))
    assert all(len(text.layout.live_rows_T) == max_steps for text in texts[:-1])
    for found, wanted in zip(grids(texts, num_rows), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_fewer_sentences_than_rows_fill_nothing(table):
    assert list(carried_texts(sentences(table, 3), table, 4, 10)) == []
    assert list(carried_texts([], table, 1, 10)) == []


def test_rows_are_filled_no_further_than_the_text_is_needed(table):
    """A stream is read as it is used: the last text needs all, the first only its own steps."""
    taken = []

    def stream():
        for sequence in sentences(table, 200):
            taken.append(sequence)
            yield sequence

    texts = carried_texts(stream(), table, 2, 5)
    next(texts)
    assert len(taken) < 20


def test_every_sentence_is_read_once_on_its_own(table):
    sequences = sentences(table)
    found = []
    for text in sentence_texts(iter(sequences), table, max_positions=30, window_positions=100):
        assert text.index_SN.shape[1] <= 30
        for row, length in enumerate(text.layout.lengths_B):
            places = np.flatnonzero(text.layout.row_N == row)
            assert text.layout.step_N[places].tolist() == list(range(length))
            found.append([text.targets_SN[direction, places].tolist() for direction in (0, 1)])
    expected = [
        [table.targets_of(s[1:]).tolist(), table.targets_of(s[::-1][1:]).tolist()]
        for s in sequences
    ]
    assert sorted(found) == sorted(expected)


def test_a_sentence_longer_than_a_text_is_alone_in_one(table):
    sequences = [table.sequence_of(WORDS[:n]) for n in (1, 9, 2)]
    texts = list(sentence_texts(sequences, table, max_positions=6, window_positions=100))
    assert [text.layout.lengths_B.tolist() for text in texts] == [[10], [3, 2]]


def test_both_directions_read_words_that_the_table_spells(table):
    text = next(sentence_texts([table.sequence_of(["w1", "w35"])], table, 10, 10))
    read = table.ids_of(["<S>", "w1", "w35", "</S>", "w35", "w1"])
    assert torch.equal(text.words[text.index_SN.ravel()], table.inputs_of(read))
