"""Compare one bucket of the corpus with what has vectors already, by id and content hash.

What has vectors are the documents of the parent snapshot and those that interrupted runs have
recorded; both are rows of KNOWN_SCHEMA, so that resuming is the same as running incrementally.
Knows Arrow tables only: no files, no Ray.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.snapshot.changes import ADD, DELETE, UPDATE

# One row a document of the corpus, in source order; `split` and `offset` say where it stands.
INDEX_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("content_hash", pa.binary(16), nullable=False),
        pa.field("split", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
    ]
)

# A document that gets new rows. `file` is null where the model has to run; otherwise only the
# metadata changed, and the known file of this number holds the vectors.
SELECTED_SCHEMA = INDEX_SCHEMA.append(pa.field("file", pa.int32()))

# One row a document that has vectors. `file` counts in the run's list of known files: those of the
# parent first, then those of interrupted runs.
KNOWN_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("content_hash", pa.binary(16), nullable=False),
        pa.field("file", pa.int32(), nullable=False),
    ]
)

# What the change feed has to say of a document. `file` is the known file that holds it; null where
# that is yet to be written, or for deletes. A new document without a row here is an `add`.
OPERATION_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("op", pa.string(), nullable=False),
        pa.field("file", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Comparison:
    """The outcome for one bucket.

    `selected` (SELECTED_SCHEMA) gets new rows. `dropped` (KNOWN_SCHEMA) leaves its file: old
    versions, gone documents, and what several files hold. `duplicates` (INDEX_SCHEMA) repeat the id
    of an earlier row. New and changed are meant against the parent; of them `num_resumed` are in
    files of interrupted runs and `num_metadata_only` need no model.
    """

    selected: pa.Table
    dropped: pa.Table
    duplicates: pa.Table
    operations: pa.Table
    num_new: int
    num_changed: int
    num_unchanged: int
    num_resumed: int
    num_metadata_only: int
    num_gone: int


@dataclass(frozen=True)
class KnownFiles:
    """How the numbers of known files are to be read.

    Files below `num_parent_files` are the parent's. With `reuse_parent` false their vectors are of
    another encoder, or their columns others: they only tell an added from an updated document.
    With `keep_gone` documents that the corpus lacks stay: their file may have been unreadable.
    """

    num_parent_files: int
    reuse_parent: bool = True
    keep_gone: bool = False


def compare(corpus: pa.Table, known: pa.Table, files: KnownFiles) -> Comparison:
    """Compare documents of the corpus with those that have vectors.

    Args:
        corpus: INDEX_SCHEMA, in source order; of equal ids the first row counts.
        known: KNOWN_SCHEMA, by ascending `file`; an id stands at most once in the parent's files.
        files: how to read the numbers in `known`.
    """
    repeated = _repeats(corpus["id"])
    first = corpus.filter(pa.array(~repeated))
    match = _Match(first, known, files)
    vectors_in = np.full(first.num_rows, -1, np.int64)
    vectors_in[match.same_text >= 0] = match.file[match.same_text[match.same_text >= 0]]
    to_write = match.same < 0
    file = pa.array(vectors_in[to_write].astype(np.int32), mask=vectors_in[to_write] < 0)
    selected = first.filter(pa.array(to_write)).append_column(SELECTED_SCHEMA.field("file"), file)
    same_file = match.file[match.same[~to_write]]
    gone = match.in_parent & (match.row < 0) & (not files.keep_gone)
    leaves = np.ones(known.num_rows, bool)
    leaves[match.same[~to_write]] = False
    leaves[match.in_parent & (match.row < 0)] = not files.keep_gone
    if not files.reuse_parent:
        leaves &= ~match.in_parent
    num_unchanged = int((same_file < files.num_parent_files).sum())
    num_changed = int(match.has_parent.sum()) - num_unchanged
    return Comparison(
        selected=selected.cast(SELECTED_SCHEMA),
        dropped=known.filter(pa.array(leaves)),
        duplicates=corpus.filter(pa.array(repeated)),
        operations=_operations(first, known.filter(pa.array(gone)), match, files),
        num_new=int((~match.has_parent).sum()),
        num_changed=num_changed,
        num_unchanged=num_unchanged,
        num_resumed=int((same_file >= files.num_parent_files).sum()),
        num_metadata_only=int((vectors_in[to_write] >= 0).sum()),
        num_gone=int(gone.sum()),
    )


class _Match:
    """Which known row serves which document.

    Over known rows (K): `row` of the document of the same id (-1: none), `file`, `in_parent`. Over
    documents (N): the first known row with the `same` content and, where there is none, with the
    `same_text` (-1: none); `has_parent`: the parent has the id.
    """

    def __init__(self, first: pa.Table, known: pa.Table, files: KnownFiles) -> None:
        found = pc.index_in(known["id"], value_set=_combined(first["id"]))
        self.row = pc.fill_null(found, -1).to_numpy()
        self.file = known["file"].to_numpy()
        self.in_parent = self.file < files.num_parent_files
        is_in_corpus = self.row >= 0
        self.has_parent = np.zeros(first.num_rows, bool)
        self.has_parent[self.row[is_in_corpus & self.in_parent]] = True
        usable = is_in_corpus & (files.reuse_parent | ~self.in_parent)
        equal = np.zeros((known.num_rows, 2), bool)
        if first.num_rows:
            equal = _halves(first["content_hash"])[self.row] == _halves(known["content_hash"])
        self.same = self._first_known(first.num_rows, usable & equal.all(axis=1))
        self.same_text = self._first_known(first.num_rows, usable & equal[:, 0])
        self.same_text[self.same >= 0] = -1

    def _first_known(self, num_documents: int, fits: NDArray[np.bool_]) -> NDArray[np.int64]:
        rows = np.flatnonzero(fits)[::-1]
        chosen = np.full(num_documents, -1, np.int64)
        chosen[self.row[rows]] = rows  # Of several, the last assignment stays: the first row.
        return chosen


def _operations(first: pa.Table, gone: pa.Table, match: _Match, files: KnownFiles) -> pa.Table:
    written = pa.array((match.same < 0) & match.has_parent)
    is_resumed = match.same >= 0
    is_resumed[is_resumed] = match.file[match.same[is_resumed]] >= files.num_parent_files
    updates = first["id"].filter(written)
    resumed = first["id"].filter(pa.array(is_resumed))
    ops = np.where(match.has_parent[is_resumed], UPDATE, ADD)
    resumed_files = match.file[match.same[is_resumed]]
    counts = (len(updates), len(resumed), gone.num_rows)
    return pa.table(
        [
            pa.concat_arrays([_combined(updates), _combined(resumed), _combined(gone["id"])]),
            pa.array([*[UPDATE] * counts[0], *ops.tolist(), *[DELETE] * counts[2]], pa.string()),
            pa.concat_arrays(
                [
                    pa.nulls(counts[0], pa.int32()),
                    pa.array(resumed_files, pa.int32()),
                    pa.nulls(counts[2], pa.int32()),
                ]
            ),
        ],
        schema=OPERATION_SCHEMA,
    )


def _combined(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _halves(hashes: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Content hashes as (N, 2): the text's half and the metadata's."""
    column = _combined(hashes)
    if not len(column):
        return np.zeros((0, 2), np.uint64)
    start_bytes = column.offset * 16
    values = np.frombuffer(column.buffers()[1], np.uint64, 2 * len(column), start_bytes)
    return values.reshape(-1, 2)


def bucket_of(ids: pa.ChunkedArray, num_buckets: int) -> NDArray[np.int64]:
    """The bucket (0 .. num_buckets - 1) of each id: its CRC-32, so that equal ids meet."""
    if num_buckets == 1:
        return np.zeros(len(ids), np.int64)
    checksums = (zlib.crc32(value.encode()) for value in ids.to_pylist())
    return np.fromiter(checksums, np.int64, len(ids)) % num_buckets


def distinct_runs(ids: pa.Array) -> NDArray[np.bool_]:
    """True where an id differs from the one before: the first row of each document in a file."""
    first = np.ones(len(ids), bool)
    if len(ids) > 1:
        first[1:] = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy(
            zero_copy_only=False
        )
    return first


def _repeats(ids: pa.ChunkedArray) -> NDArray[np.bool_]:
    """True on rows whose id stood in an earlier row."""
    # Codes are given out in order of appearance, so a code that is not a new maximum is a repeat.
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy()
    highest_before = np.full(len(codes), -1, dtype=codes.dtype)
    highest_before[1:] = np.maximum.accumulate(codes)[:-1]
    repeated: NDArray[np.bool_] = codes <= highest_before
    return repeated
