"""Prepared text on disk: Parquet files of tokenised passages, read a unit at a time.

A passage is a document, or a run of whole sentences of a long one. A unit is a row group of some
thousand tokens, and what training visits in random order. The manifest is written last, so text
that is not named by one does not exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import CorruptFileError
from pipeline.pretraining.text_part import TextPart
from pipeline.storage import Storage

TOKENS_PER_UNIT = 1 << 13
UNITS_PER_SHARD = 512
MANIFEST_NAME = "text.json"
MANIFEST_VERSION = 1
MAX_MANIFEST_BYTES = 1 << 28

SCHEMA = pa.schema(
    [
        pa.field("tokens", pa.list_(pa.string()), nullable=False),
        pa.field("sentence_lengths", pa.list_(pa.int32()), nullable=False),
    ]
)


@dataclass(frozen=True)
class Shard:
    """One file of prepared text; `unit_tokens` are the tokens of its units, in order."""

    path: str
    size_bytes: int
    num_sentences: int
    unit_tokens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens, sentence marks not counted."""
        return sum(self.unit_tokens)


@dataclass(frozen=True)
class PreparedText:
    """What a corpus was prepared to: the text to learn from, and what is held out."""

    train: tuple[Shard, ...]
    held_out: tuple[Shard, ...]
    num_train_documents: int
    num_held_out_documents: int
    rejected_by_code: Mapping[str, int]

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
            parts = [
                tuple(
                    Shard(**{**shard, "unit_tokens": tuple(shard["unit_tokens"])})
                    for shard in values[name]
                )
                for name in ("train", "held_out")
            ]
            return cls(
                parts[0],
                parts[1],
                int(values["num_train_documents"]),
                int(values["num_held_out_documents"]),
                dict(values["rejected_by_code"]),
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
    shards = (*prepared.train, *prepared.held_out)
    complete = all(sizes.get(shard.path) == shard.size_bytes for shard in shards)
    return prepared if complete else None


def write_prepared(storage: Storage, folder: str, prepared: PreparedText) -> None:
    """Write the description of a folder's text, which makes it exist."""
    storage.put(f"{folder}/{MANIFEST_NAME}", prepared.to_json().encode())


class ShardWriter:
    """Writes tokenised documents as shards of units; holds one unit in memory."""

    def __init__(self, storage: Storage, prefix: str) -> None:
        """Write to `<prefix>-0000.parquet` and on."""
        self._storage = storage
        self._prefix = prefix
        self._shards: list[Shard] = []
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._units: list[pa.Table] = []

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
            self._units.append(pa.concat_tables(self._waiting).combine_chunks())
        self._waiting, self._num_waiting = [], 0
        if len(self._units) >= UNITS_PER_SHARD:
            self._end_shard()

    def _end_shard(self) -> None:
        units, self._units = self._units, []
        if not units:
            return
        path = f"{self._prefix}-{len(self._shards):04d}.parquet"
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
            for unit in units:
                writer.write_table(unit.cast(SCHEMA), row_group_size=len(unit))
        data = sink.getvalue()
        with self._storage.open_output(path) as output:
            output.write(data)
        self._shards.append(
            Shard(
                path=path,
                size_bytes=data.size,
                num_sentences=sum(
                    len(chunk.flatten())
                    for unit in units
                    for chunk in unit["sentence_lengths"].chunks
                ),
                unit_tokens=tuple(map(_num_tokens, units)),
            )
        )


def read_unit(storage: Storage, shard: Shard, unit: int) -> TextPart:
    """One unit of a shard.

    Raises:
        CorruptFileError: it is damaged.
        StorageError: the store failed.
    """
    with storage.open_input(shard.path) as file:
        try:
            table = pq.ParquetFile(
                file, read_dictionary=["tokens.list.element"], pre_buffer=False
            ).read_row_group(unit)
            part = TextPart.of(table)
        except (pa.ArrowException, OSError, IndexError) as error:
            raise CorruptFileError(
                f"{storage.url_of(shard.path)}: unit {unit} of {len(shard.unit_tokens)} of the "
                f"prepared text cannot be read: {error}; remove the folder, and the text is "
                "prepared anew"
            ) from None
    if len(part.ids_N) != shard.unit_tokens[unit]:
        raise CorruptFileError(
            f"{storage.url_of(shard.path)}: unit {unit} of the prepared text holds "
            f"{len(part.ids_N)} tokens, expected {shard.unit_tokens[unit]}; remove the folder, and "
            "the text is prepared anew"
        )
    return part


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
