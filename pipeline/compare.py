"""Compare one bucket of the corpus with the snapshot, by id and content hash.

Finds what is new, changed, unchanged, gone, or there twice. Knows Arrow tables only: no files, no
Ray.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# One row a document of the corpus, in source order; `split` and `offset` say where it stands.
INDEX_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("content_hash", pa.binary(16), nullable=False),
        pa.field("split", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
    ]
)

# One row a document of the snapshot; `file` counts in the manifest's file list.
KNOWN_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("content_hash", pa.binary(16), nullable=False),
        pa.field("file", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Comparison:
    """The outcome for one bucket.

    `selected` (INDEX_SCHEMA) is to be embedded: new documents and changed ones. `dropped`
    (KNOWN_SCHEMA) leaves the snapshot: old versions of changed documents, and gone ones.
    `duplicates` (INDEX_SCHEMA) repeat the id of an earlier row.
    """

    selected: pa.Table
    dropped: pa.Table
    duplicates: pa.Table
    num_new: int
    num_changed: int
    num_unchanged: int
    num_gone: int


def compare(corpus: pa.Table, known: pa.Table, *, keep_gone: bool = False) -> Comparison:
    """Compare documents of the corpus with those of the snapshot, by id and content hash.

    Args:
        corpus: INDEX_SCHEMA, in source order; of equal ids the first row counts.
        known: KNOWN_SCHEMA, ids unique.
        keep_gone: documents that the corpus lacks stay in the snapshot (their file may have been
            unreadable).
    """
    repeated = _repeats(corpus["id"])
    first = corpus.filter(pa.array(~repeated))
    position = pc.index_in(first["id"], value_set=known["id"].combine_chunks())
    is_known = position.is_valid().to_numpy()
    same = pc.equal(first["content_hash"], known["content_hash"].take(position))
    same = pc.fill_null(same, False).to_numpy()
    changed = is_known & ~same
    in_corpus = pc.is_in(known["id"], value_set=first["id"].combine_chunks()).to_numpy()
    gone = np.zeros(known.num_rows, bool) if keep_gone else ~in_corpus
    dropped = gone.copy()
    dropped[position.drop_null().to_numpy()[changed[is_known]]] = True
    return Comparison(
        selected=first.filter(pa.array(~same)),
        dropped=known.filter(pa.array(dropped)),
        duplicates=corpus.filter(pa.array(repeated)),
        num_new=int((~is_known).sum()),
        num_changed=int(changed.sum()),
        num_unchanged=int(same.sum()),
        num_gone=int(gone.sum()),
    )


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
