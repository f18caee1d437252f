"""Streams of training text: all of it in every pass, and the same from any place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elmo_model.lm_batches import WordTable
from elmo_model.vocabulary import MARKS, Vocabulary
from pipeline.errors import CorruptFileError, SourceError
from pipeline.pretraining.shards import Shard
from pipeline.pretraining.streams import BatchShape, StreamPosition, TextBatches
from pipeline.pretraining.text_part import TextPart
from pipeline.pretraining.units import ReadingOrder, streams_for

SHUFFLES = ["sentences", "documents", "none"]
WORDS = [f"w{number}" for number in range(40)]
VOCABULARY = Vocabulary([*MARKS, *WORDS[:30]])


def part_of(documents):
    """Documents, each a list of sentences of word numbers, as a unit."""
    sentences = [sentence for document in documents for sentence in document]
    ids = [word for sentence in sentences for word in sentence]
    used = sorted(set(ids))
    return TextPart(
        [WORDS[word] for word in used],
        np.searchsorted(used, ids).astype(np.int32) if ids else np.empty(0, np.int32),
        np.array([len(sentence) for sentence in sentences], np.int64),
        np.array([len(document) for document in documents], np.int64),
    )


class Text:
    """Units of numbered documents in shards of two units."""

    def __init__(self, num_units, seed=0):
        rng = np.random.default_rng(seed)
        self.units = [
            [
                [rng.integers(0, len(WORDS), rng.integers(1, 9)).tolist() for _ in range(size)]
                for size in rng.integers(1, 6, 4)
            ]
            for _ in range(num_units)
        ]
        self.shards = [
            Shard(f"s{first}", 0, *[(1,) * len(self.units[first : first + 2])] * 2)
            for first in range(0, num_units, 2)
        ]

    def read(self, shard, unit):
        return part_of(self.units[2 * shard + unit])

    @property
    def sentences(self):
        return [sentence for unit in self.units for document in unit for sentence in document]


def read_in_one_pass(text, num_streams, shuffle, epoch=0):
    """The sentences that each stream reads."""
    order = ReadingOrder(text.shards, num_streams, 3, shuffle)
    streams = []
    for stream in range(num_streams):
        found = []
        for number, window in enumerate(order.windows(stream, epoch)):
            pool = []
            for unit in window:
                documents = text.units[2 * unit.shard + unit.unit]
                flat = [sentence for document in documents for sentence in document]
                sizes = np.array([len(document) for document in documents])
                pool += [flat[place] for place in order.sentences(unit, epoch, sizes)]
            found += [pool[index] for index in order.mixed(stream, epoch, number, len(pool))]
        streams.append(found)
    return streams


@pytest.mark.parametrize("shuffle", SHUFFLES)
@given(num_units=st.integers(1, 20), num_streams=st.integers(1, 9), epoch=st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_a_pass_reads_every_sentence_once(shuffle, num_units, num_streams, epoch):
    text = Text(num_units)
    streams = read_in_one_pass(text, num_streams, shuffle, epoch)
    found = [sentence for stream in streams for sentence in stream]
    assert sorted(found) == sorted(text.sentences)
    if shuffle == "none":
        assert found == text.sentences


def test_passes_differ_in_their_order_and_equal_seeds_do_not():
    text = Text(12)
    assert read_in_one_pass(text, 2, "sentences", 1) == read_in_one_pass(text, 2, "sentences", 1)
    assert read_in_one_pass(text, 2, "sentences", 1) != read_in_one_pass(text, 2, "sentences", 2)


def test_sentences_from_all_over_the_text_are_read_side_by_side():
    text = Text(40)
    (stream,) = read_in_one_pass(text, 1, "sentences")
    unit_of = {}
    for number, unit in enumerate(text.units):
        for document in unit:
            for sentence in document:
                unit_of[tuple(sentence)] = number
    places = [unit_of[tuple(sentence)] for sentence in stream]
    near = [len(set(places[first : first + 24])) for first in range(0, len(places) - 24, 24)]
    assert sum(near) / len(near) > 6


def test_shuffled_documents_keep_their_sentences_together():
    text = Text(12)
    (stream,) = read_in_one_pass(text, 1, "documents")
    assert stream != text.sentences
    followers = list(zip(stream, stream[1:], strict=False))
    for unit in text.units:
        for document in unit:
            for pair in zip(document, document[1:], strict=False):
                assert pair in followers


def batches_of(text, streams, num_streams=2, shuffle="sentences", positions=None, **options):
    characters = options.pop("characters", 6)
    order = ReadingOrder(text.shards, num_streams, 3, shuffle)
    return TextBatches(
        order,
        streams,
        text.read,
        lambda: WordTable(VOCABULARY, characters),
        BatchShape(2, 5),
        positions,
        **options,
    )


def values_of(batch):
    return [
        batch.words.tolist(),
        *([text.inputs_BT.tolist(), text.targets_BT.tolist()] for text in batch.directions),
    ]


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("characters", [6, None])
@given(stop=st.integers(1, 60), num_units=st.integers(1, 12))
@settings(deadline=None, max_examples=20)
def test_a_stream_that_goes_on_from_a_place_gives_what_the_other_would_have(
    shuffle, characters, stop, num_units
):
    text = Text(num_units)
    whole = iter(batches_of(text, [0, 1], shuffle=shuffle, characters=characters))
    for _ in range(stop):
        _, snapshots = next(whole)
    positions = [
        StreamPosition.from_json(snapshot.position().to_json(), "test") for snapshot in snapshots
    ]
    resumed = iter(
        batches_of(text, [0, 1], shuffle=shuffle, characters=characters, positions=positions)
    )
    for _ in range(8):
        (one, _), (other, _) = next(whole), next(resumed)
        assert values_of(one) == values_of(other)


def test_workers_read_together_what_one_would_read():
    text = Text(10)
    alone = iter(batches_of(text, [0, 1, 2, 3], num_streams=4))
    together = [iter(batches_of(text, part, num_streams=4)) for part in ([0, 1], [2, 3])]
    for _ in range(30):
        batch, _ = next(alone)
        parts = [next(worker)[0] for worker in together]
        for direction, whole in enumerate(batch.directions):
            targets = [part.directions[direction].targets_BT for part in parts]
            assert np.array_equal(np.concatenate(targets), whole.targets_BT)


def test_a_table_that_starts_anew_changes_no_batch():
    text = Text(10)
    plain = iter(batches_of(text, [0, 1]))
    small = iter(batches_of(text, [0, 1], max_table_words=12))
    for _ in range(60):
        assert values_of(next(plain)[0]) == values_of(next(small)[0])


def test_too_few_sentences_for_the_streams_are_an_error():
    text = Text(1)
    text.units = [[[[1, 2, 3]]]]
    batches = iter(batches_of(text, [0, 1, 2], num_streams=3, shuffle="none"))
    with pytest.raises(SourceError, match=r"too few sentences .* lower training\.batch_size"):
        next(batches)


def test_a_damaged_position_is_refused():
    with pytest.raises(CorruptFileError, match="position of a stream"):
        StreamPosition.from_json({"epoch": 0, "window": "one"}, "checkpoint")


def test_rows_are_divided_evenly_among_the_streams():
    assert streams_for(64, "sentences") == 8
    assert streams_for(60, "sentences") == 6
    assert streams_for(7, "sentences") == 7
    assert streams_for(64, "none") == streams_for(64, "documents") == 64
    assert streams_for(64, "sentences", num_workers=16) == 16
    assert streams_for(64, "none", num_sentences=10) == 8
    assert streams_for(11, "sentences", num_workers=2) == 11
