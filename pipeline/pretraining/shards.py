"""Prepared text on disk: tokenised passages, read a unit at a time with one request each.

A passage is a document, or a run of whole sentences of a long one. A unit is some thousand tokens
of passages, and what training visits in random order. A shard is a file of units, each an Arrow IPC
stream of its own, whose places the manifest has. Beside the shards stand counts of the words that
are trained on, and what was rejected. The manifest is written last, so text that is not named by
one does not exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import CorruptFileError
from pipeline.pretraining.text_part import TextPart
from pipeline.rejected import RejectedTally
from pipeline.storage import Storage
from pipeline.word_counts import COUNTS_SCHEMA, HeldCounts

TOKENS_PER_UNIT = 1 << 13
UNITS_PER_SHARD = 512
# Counts of words that a task holds before it writes them.
MAX_HELD_BYTES = 32 << 20
MANIFEST_NAME = "text.json"
# 1 was Parquet, of which each unit took three requests.
MANIFEST_VERSION = 2
MAX_MANIFEST_BYTES = 1 << 28

SCHEMA = pa.schema(
    [
        pa.field("tokens", pa.list_(pa.string()), nullable=False),
        pa.field("sentence_lengths", pa.list_(pa.int32()), nullable=False),
    ]
)
# On disk each distinct word of a unit stands once.
STORED_SCHEMA = SCHEMA.set(
    0, pa.field("tokens", pa.list_(pa.dictionary(pa.int32(), pa.string())), nullable=False)
)


@dataclass(frozen=True)
class Shard:
    """One file of prepared text; tokens and bytes of its units are in their order."""

    path: str
    num_sentences: int
    unit_tokens: tuple[int, ...]
    unit_bytes: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens, sentence marks not counted."""
        return sum(self.unit_tokens)

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return sum(self.unit_bytes)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Shard:
        """Of what `dataclasses.asdict` made of one."""
        lists = {name: tuple(values[name]) for name in ("unit_tokens", "unit_bytes")}
        return cls(**{**values, **lists})


@dataclass(frozen=True)
class StoredCounts:
    """One file of counts of words (COUNTS_SCHEMA); `table_bytes` is what it takes in memory."""

    path: str
    size_bytes: int
    table_bytes: int


@dataclass(frozen=True)
class PreparedText:
    """What a corpus was prepared to: the text to learn from, and what is held out.

    `counts` together count the words of the text to learn from. All rejected rows are in the files
    of `rejected_folders`.
    """

    train: tuple[Shard, ...]
    held_out: tuple[Shard, ...]
    counts: tuple[StoredCounts, ...]
    num_train_documents: int
    num_held_out_documents: int
    rejected: RejectedTally
    rejected_folders: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the corpus, rejected ones included."""
        return self.num_train_documents + self.num_held_out_documents + self.rejected.total

    def to_json(self) -> str:
        """The manifest's content; `from_json` reads it back."""
        return json.dumps({"version": MANIFEST_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str, where: str) -> PreparedText:
        """Read what `to_json` wrote.

        Raises:
            CorruptFileError: it is not such a text.
        """
        try:
            values = json.loads(text)
            if values["version"] != MANIFEST_VERSION:
                raise ValueError(f"version {values['version']}")
            return cls(
                tuple(map(Shard.from_json, values["train"])),
                tuple(map(Shard.from_json, values["held_out"])),
                tuple(StoredCounts(**entry) for entry in values["counts"]),
                int(values["num_train_documents"]),
                int(values["num_held_out_documents"]),
                RejectedTally.from_json(values["rejected"]),
                tuple(values["rejected_folders"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(
                f"{where}: expected the description of prepared text of version "
                f"{MANIFEST_VERSION}, found {error!r}; remove the file, and the text is prepared "
                "anew"
            ) from None


def read_prepared(storage: Storage, folder: str) -> PreparedText | None:
    """The text that was prepared in a folder; None if there is none, or not all of it.

    Raises:
        CorruptFileError: its description is damaged.
        StorageError: the store failed.
    """
    path = f"{folder}/{MANIFEST_NAME}"
    if not storage.exists(path):
        return None
    text = storage.read_bytes(path, MAX_MANIFEST_BYTES).decode("utf-8", "replace")
    prepared = PreparedText.from_json(text, storage.url_of(path))
    sizes = {info.path: info.size_bytes for info in storage.list_files(folder)}
    files: list[Shard | StoredCounts] = [*prepared.train, *prepared.held_out, *prepared.counts]
    complete = all(sizes.get(file.path) == file.size_bytes for file in files)
    return prepared if complete else None


def write_prepared(storage: Storage, folder: str, prepared: PreparedText) -> None:
    """Write the description of a folder's text, which makes it exist."""
    storage.put(f"{folder}/{MANIFEST_NAME}", prepared.to_json().encode())


class ShardWriter:
    """Writes tokenised documents as shards of units; holds a shard in memory, compressed."""

    def __init__(self, storage: Storage, prefix: str) -> None:
        """Write to `<prefix>-0000.arrows` and on."""
        self._storage = storage
        self._prefix = prefix
        self._shards: list[Shard] = []
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._units: list[bytes] = []
        self._unit_tokens: list[int] = []
        self._num_sentences = 0

    def write(self, documents: pa.Table) -> None:
        """Add documents with `tokens` and `sentence_lengths`."""
        for passages in _passages(documents.select(SCHEMA.names)):
            self._waiting.append(passages)
            self._num_waiting += _num_tokens(passages)
            if self._num_waiting >= TOKENS_PER_UNIT:
                self._end_unit()

    def close(self) -> tuple[Shard, ...]:
        """Write what is left; returns all shards."""
        self._end_unit()
        self._end_shard()
        return tuple(self._shards)

    def _end_unit(self) -> None:
        if self._waiting:
            unit = pa.concat_tables(self._waiting).combine_chunks()
            self._units.append(_encoded(unit))
            self._unit_tokens.append(self._num_waiting)
            self._num_sentences += sum(
                len(chunk.flatten()) for chunk in unit["sentence_lengths"].chunks
            )
        self._waiting, self._num_waiting = [], 0
        if len(self._units) >= UNITS_PER_SHARD:
            self._end_shard()

    def _end_shard(self) -> None:
        if not self._units:
            return
        path = f"{self._prefix}-{len(self._shards):04d}.arrows"
        with self._storage.open_output(path) as output:
            for unit in self._units:
                output.write(unit)
        sizes = tuple(map(len, self._units))
        self._shards.append(Shard(path, self._num_sentences, tuple(self._unit_tokens), sizes))
        self._units, self._unit_tokens, self._num_sentences = [], [], 0


class CountWriter:
    """Counts words, and writes the counts whenever they take much memory, and at the end."""

    def __init__(self, storage: Storage, prefix: str, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        """Write to `<prefix>-0000.arrows` and on."""
        self._storage, self._prefix = storage, prefix
        self._held = HeldCounts(max_held_bytes)
        self._files: list[StoredCounts] = []

    def add(self, documents: pa.Table) -> None:
        """Count the words of documents with `tokens`."""
        tokens = [chunk.flatten() for chunk in documents["tokens"].chunks]
        if self._held.add(pa.chunked_array(tokens, pa.string())):
            self._write()

    def close(self) -> tuple[StoredCounts, ...]:
        """Write what is left; returns all files."""
        self._write()
        return tuple(self._files)

    def _write(self) -> None:
        counts = self._held.take()
        if not counts.num_rows:
            return
        path = f"{self._prefix}-{len(self._files):04d}.arrows"
        data = _stream(counts)
        with self._storage.open_output(path) as output:
            output.write(data)
        self._files.append(StoredCounts(path, len(data), counts.nbytes))


def read_unit(storage: Storage, shard: Shard, unit: int) -> TextPart:
    """One unit of a shard, by one request.

    Raises:
        CorruptFileError: it is damaged.
        StorageError: the store failed.
    """
    start = sum(shard.unit_bytes[:unit])
    data = storage.read_range(shard.path, start, start + shard.unit_bytes[unit])
    what = f"unit {unit} of {len(shard.unit_bytes)} of the prepared text"
    part = TextPart.of(_decoded(data, STORED_SCHEMA, storage.url_of(shard.path), what))
    if len(part.ids_N) != shard.unit_tokens[unit]:
        raise CorruptFileError(
            f"{storage.url_of(shard.path)}: {what} holds {len(part.ids_N)} tokens, expected "
            f"{shard.unit_tokens[unit]}; remove the folder, and the text is prepared anew"
        )
    return part


def read_counts(storage: Storage, counts: StoredCounts) -> pa.Table:
    """A file of counts (COUNTS_SCHEMA).

    Raises:
        CorruptFileError: it is damaged.
        StorageError: the store failed.
    """
    data = storage.read_range(counts.path, 0, counts.size_bytes)
    return _decoded(data, COUNTS_SCHEMA, storage.url_of(counts.path), "the counts of words")


def _encoded(unit: pa.Table) -> bytes:
    lists = unit["tokens"].combine_chunks()
    tokens = pa.ListArray.from_arrays(
        pc.subtract(lists.offsets, lists.offsets[0]),
        lists.flatten().dictionary_encode(),
        type=STORED_SCHEMA.field(0).type,
    )
    lengths = unit["sentence_lengths"].cast(STORED_SCHEMA.field(1).type)
    return _stream(pa.table([tokens, lengths], schema=STORED_SCHEMA))


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _decoded(data: bytes, schema: pa.Schema, where: str, what: str) -> pa.Table:
    try:
        table = pa.ipc.open_stream(data).read_all()
        table.validate(full=True)
        if not table.schema.equals(schema):
            raise pa.ArrowInvalid(f"it holds {', '.join(table.schema.names)}")
    except (pa.ArrowException, OSError) as error:
        raise CorruptFileError(
            f"{where}: {what} cannot be read: {error}; remove the folder, and the text is prepared "
            "anew"
        ) from None
    return table


def _num_tokens(documents: pa.Table) -> int:
    return sum(len(chunk.flatten()) for chunk in documents["tokens"].chunks)


def _passages(documents: pa.Table) -> Iterator[pa.Table]:
    """Runs of documents of about a unit; a longer document is cut between its sentences."""
    lists = documents["tokens"].chunks
    lengths = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in lists]
    first, num_tokens = 0, 0
    for index, length in enumerate(np.concatenate([*lengths, np.empty(0, np.int64)]).tolist()):
        if length > TOKENS_PER_UNIT:
            if index > first:
                yield documents.slice(first, index - first)
            yield from _cut(documents.slice(index, 1))
            first, num_tokens = index + 1, 0
            continue
        num_tokens += length
        if num_tokens >= TOKENS_PER_UNIT:
            yield documents.slice(first, index + 1 - first)
            first, num_tokens = index + 1, 0
    if first < len(documents):
        yield documents.slice(first)


def _cut(document: pa.Table) -> Iterator[pa.Table]:
    tokens = document["tokens"].combine_chunks().flatten()
    lengths = document["sentence_lengths"].combine_chunks().flatten()
    ends = np.cumsum(lengths.to_numpy())
    for first, last in _runs(ends):
        start = int(ends[first - 1]) if first else 0
        yield pa.table(
            [
                _one_list(tokens.slice(start, int(ends[last - 1]) - start), SCHEMA.field(0).type),
                _one_list(lengths.slice(first, last - first), SCHEMA.field(1).type),
            ],
            schema=SCHEMA,
        )


def _runs(ends: NDArray[np.int64]) -> Sequence[tuple[int, int]]:
    """(first, past-last) sentence of runs that end as soon as they hold a unit's tokens."""
    runs, first, start = [], 0, 0
    for index, end in enumerate(ends.tolist()):
        if end - start >= TOKENS_PER_UNIT or index == len(ends) - 1:
            runs.append((first, index + 1))
            first, start = index + 1, end
    return runs


def _one_list(values: pa.Array, list_type: pa.ListType) -> pa.ListArray:
    offsets = pa.array([0, len(values)], pa.int32())
    return pa.ListArray.from_arrays(offsets, values.cast(list_type.value_type), type=list_type)
