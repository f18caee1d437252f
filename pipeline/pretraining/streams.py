"""Batches of training text from prepared units, and the exact place where each stream is.

A worker feeds the rows of its streams. After every batch the place of each stream is known: pass,
window, sentence, and what its rows still hold, as words. A stream that starts from such a place
gives what the other one would have given, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elmo_model.lm_batches import LmBatch, RowPacker, WordTable, to_batch
from pipeline.errors import CorruptFileError, SourceError
from pipeline.pretraining.text_part import TextPart
from pipeline.pretraining.units import ReadingOrder, Unit

# A word costs about 200 bytes; beyond this the table starts anew with what is in use.
MAX_TABLE_WORDS = 500_000

# Passes without a sentence for a stream, before there is too little text.
MAX_EMPTY_PASSES = 100

ReadUnit = Callable[[int, int], TextPart]


@dataclass(frozen=True)
class StreamPosition:
    """Where a stream is: the pass, its window of it, sentences taken from that, and its rows.

    `rows` are the sentence that each row is in, sentence marks included, and how many of its
    predictions are done.
    """

    epoch: int
    window: int
    sentence: int
    rows: tuple[tuple[tuple[str, ...], int], ...]

    def to_json(self) -> dict[str, Any]:
        """As values of JSON."""
        return {
            "epoch": self.epoch,
            "window": self.window,
            "sentence": self.sentence,
            "rows": [[list(words), done] for words, done in self.rows],
        }

    @classmethod
    def from_json(cls, values: Any, where: str) -> StreamPosition:
        """Read what `to_json` made.

        Raises:
            CorruptFileError: it is not such a value.
        """
        try:
            return cls(
                int(values["epoch"]),
                int(values["window"]),
                int(values["sentence"]),
                tuple((tuple(map(str, words)), int(done)) for words, done in values["rows"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(
                f"{where}: expected the position of a stream, found {error!r}"
            ) from None


@dataclass(frozen=True)
class Snapshot:
    """A stream's position as it was after a batch; made into words only when it is kept."""

    epoch: int
    window: int
    sentence: int
    rows: tuple[tuple[NDArray[np.int64], int], ...]
    table: WordTable

    def position(self) -> StreamPosition:
        """The position, which holds words and no numbers of a table."""
        return StreamPosition(
            self.epoch,
            self.window,
            self.sentence,
            tuple((tuple(self.table.words_of(ids)), done) for ids, done in self.rows),
        )


@dataclass(frozen=True)
class BatchShape:
    """Rows of a batch that each stream fills, their length, and whether backwards, too."""

    rows_per_stream: int
    unroll_steps: int
    bidirectional: bool = True


class TextStream:
    """One stream's sentences, pass after pass, and the rows that it fills."""

    def __init__(
        self,
        order: ReadingOrder,
        stream: int,
        read_unit: ReadUnit,
        table: WordTable,
        shape: BatchShape,
        position: StreamPosition | None = None,
    ) -> None:
        """Start at the beginning of the first pass, or where `position` says.

        Args:
            order: which units are read when.
            stream: number of this stream.
            read_unit: gives a unit of a shard.
            table: numbers the words.
            shape: of the batches.
            position: of a stream with as many rows.
        """
        self._order, self._stream, self._read_unit = order, stream, read_unit
        self._unroll_steps = shape.unroll_steps
        self._table = table
        self._epoch = position.epoch if position else 0
        self._window = position.window if position else 0
        self._sentence = position.sentence if position else 0
        rows = None
        if position is not None:
            rows = [(table.ids_of(words), done) for words, done in position.rows]
        self._packer = RowPacker(shape.rows_per_stream, shape.unroll_steps, rows)
        self._windows = order.windows(stream, self._epoch)
        self._loaded: _Loaded | None = None
        self._num_read = 0
        self._reader = self._sentences()

    def fill(self) -> NDArray[np.int64]:
        """The next rows, as `RowPacker.fill` gives them."""
        filled = self._packer.fill(self._reader)
        assert filled is not None, "passes never end"
        return filled

    def snapshot(self) -> Snapshot:
        """Where the stream is now."""
        return Snapshot(self._epoch, self._window, self._sentence, self._packer.rows, self._table)

    def renumber(self, table: WordTable) -> None:
        """Go on with the numbers of another table."""
        rows = [(table.ids_of(self._table.words_of(ids)), done) for ids, done in self._packer.rows]
        self._packer = RowPacker(len(rows), self._unroll_steps, rows)
        self._table = table
        if self._loaded is not None:
            self._loaded = _Loaded(self._loaded.parts, self._loaded.order, table)

    def _sentences(self) -> Iterator[NDArray[np.int64]]:
        empty_passes = 0
        while True:
            num_before = self._num_read
            while self._window < len(self._windows):
                if self._loaded is None:
                    self._loaded = self._load(self._windows[self._window])
                while self._sentence < len(self._loaded.order):
                    self._sentence += 1
                    self._num_read += 1
                    yield self._loaded.sentence(self._sentence - 1)
                self._loaded = None
                self._window, self._sentence = self._window + 1, 0
            empty_passes = empty_passes + 1 if self._num_read == num_before else 0
            if empty_passes > MAX_EMPTY_PASSES:
                raise SourceError(
                    f"the text has too few sentences for {self._order.num_streams} streams of it; "
                    "lower training.batch_size, or give more text"
                )
            self._epoch, self._window = self._epoch + 1, 0
            self._windows = self._order.windows(self._stream, self._epoch)

    def _load(self, units: Sequence[Unit]) -> _Loaded:
        parts, places = [], []
        for number, unit in enumerate(units):
            part = self._read_unit(unit.shard, unit.unit)
            order = self._order.sentences(unit, self._epoch, part.num_sentences_D)
            parts.append(part)
            places += [(number, place) for place in order.tolist()]
        mixed = self._order.mixed(self._stream, self._epoch, self._window, len(places))
        return _Loaded(parts, [places[index] for index in mixed.tolist()], self._table)


class _Loaded:
    """A window in memory, numbered by a table; `order` names part and sentence."""

    def __init__(
        self, parts: Sequence[TextPart], order: Sequence[tuple[int, int]], table: WordTable
    ) -> None:
        self.parts, self.order = parts, order
        self._begin, self._end = table.begin_id, table.end_id
        self._numbers = [table.ids_of(part.words) for part in parts]
        self._ends = [np.cumsum(part.sentence_lengths_S) for part in parts]

    def sentence(self, index: int) -> NDArray[np.int64]:
        """The sentence at a place of the order, with its marks."""
        number, place = self.order[index]
        part, end = self.parts[number], self._ends[number][place]
        ids = part.ids_N[end - part.sentence_lengths_S[place] : end]
        filled = np.empty(len(ids) + 2, np.int64)
        filled[0], filled[-1] = self._begin, self._end
        filled[1:-1] = self._numbers[number][ids]
        return filled


class TextBatches:
    """The batches of one worker: the rows of its streams, one stream after the other."""

    def __init__(
        self,
        order: ReadingOrder,
        streams: Sequence[int],
        read_unit: ReadUnit,
        new_table: Callable[[], WordTable],
        shape: BatchShape,
        positions: Sequence[StreamPosition] | None = None,
        max_table_words: int = MAX_TABLE_WORDS,
    ) -> None:
        """Start at the beginning, or where each of the streams was.

        Args:
            order: which units are read when.
            streams: this worker's, in the order of its rows.
            read_unit: gives a unit of a shard; small corpora ask for one many times.
            new_table: makes an empty table of words.
            shape: of the batches.
            positions: of these streams.
            max_table_words: a table beyond this starts anew.
        """
        self._new_table, self._max_table_words = new_table, max_table_words
        self._bidirectional = shape.bidirectional
        self._table = new_table()
        self._streams = [
            TextStream(
                order,
                stream,
                read_unit,
                self._table,
                shape,
                None if positions is None else positions[place],
            )
            for place, stream in enumerate(streams)
        ]

    def __iter__(self) -> Iterator[tuple[LmBatch, tuple[Snapshot, ...]]]:
        """Batches without end, each with the places of the streams after it."""
        while True:
            if len(self._table) > self._max_table_words:
                self._table = self._new_table()
                for stream in self._streams:
                    stream.renumber(self._table)
            filled = np.concatenate([stream.fill() for stream in self._streams], axis=1)
            batch = to_batch(filled, self._table, self._bidirectional)
            yield batch, tuple(stream.snapshot() for stream in self._streams)
