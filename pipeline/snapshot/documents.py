"""Pair the documents of two snapshots by id, reading no more than ids and content hashes.

Files that both snapshots name hold the same documents and are not read. Memory holds one bucket of
ids; the others wait on the local disk (56 bytes and an id for each document of the files read).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data_files import document_mask, read_batches
from pipeline.snapshot.buckets import MAX_ROWS_IN_MEMORY, Buckets, num_buckets_for
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.storage import Storage

FILES_AT_ONCE = 4

DOCUMENT_SCHEMA = pa.schema([("id", pa.string()), ("content_hash", pa.binary(16))])
# A document of one of the files that only one snapshot names; `file` counts in its file list.
_PLACED_SCHEMA = DOCUMENT_SCHEMA.append(pa.field("file", pa.int32())).append(
    pa.field("is_new", pa.bool_())
)
# A document of the two snapshots: the files that hold it (null: not there), counted in their file
# lists, and whether its content hashes are equal. Only files that are not in both are looked at.
PAIR_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("old_file", pa.int32()),
        pa.field("new_file", pa.int32()),
        pa.field("same_content", pa.bool_()),
    ]
)


class DocumentPairs:
    """The documents of the files that only one of two snapshots names, bucket by bucket."""

    def __init__(self, placed: Buckets) -> None:
        self._placed = placed

    @property
    def num_buckets(self) -> int:
        """Tables that iterating yields; the ids are divided as by `Buckets` of this number."""
        return self._placed.num_buckets

    def __iter__(self) -> Iterator[pa.Table]:
        """Tables of PAIR_SCHEMA, each id in one of them, once. May be repeated."""
        for placed in self._placed:
            yield _paired(
                placed.filter(pc.invert(placed["is_new"])), placed.filter(placed["is_new"])
            )


@contextmanager
def document_pairs(
    storage: Storage, old: Snapshot | None, new: Snapshot, *, max_rows: int = MAX_ROWS_IN_MEMORY
) -> Iterator[DocumentPairs]:
    """Find what became of each document.

    Args:
        storage: the snapshot directory.
        old: the one to start from; None is an empty one.
        new: the other one.
        max_rows: documents in memory at once, about.

    Raises:
        CorruptFileError: a file cannot be read.
        MissingFileError: a file is gone.
        StorageError: the store failed.
    """
    old_files = old.files if old is not None else ()
    old_paths, new_paths = ({file.path for file in files} for files in (old_files, new.files))
    chosen = [(index, f, False) for index, f in enumerate(old_files) if f.path not in new_paths]
    chosen += [(index, f, True) for index, f in enumerate(new.files) if f.path not in old_paths]
    num_documents = sum(file.num_documents for _, file, _ in chosen)
    with (
        Buckets(_PLACED_SCHEMA, num_buckets_for(num_documents, max_rows)) as placed,
        ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="documents") as pool,
    ):
        for first in range(0, len(chosen), FILES_AT_ONCE):
            few = chosen[first : first + FILES_AT_ONCE]
            tables = pool.map(lambda item: documents_of(storage, [item[1]]), few)
            for (index, _, is_new), table in zip(few, tables, strict=True):
                columns = [
                    pa.repeat(pa.scalar(index, pa.int32()), table.num_rows),
                    pa.repeat(is_new, table.num_rows),
                ]
                placed.add(pa.table([*table.columns, *columns], schema=_PLACED_SCHEMA))
        yield DocumentPairs(placed)


def documents_of(
    storage: Storage, files: Sequence[DataFile], ids: pa.Array | None = None
) -> pa.Table:
    """Ids and content hashes (DOCUMENT_SCHEMA) of data files, one row a document.

    Only these two columns are read.

    Args:
        storage: the snapshot directory.
        files: the files.
        ids: keep only these documents; None keeps all.

    Raises:
        CorruptFileError: a file cannot be read.
        MissingFileError: a file is gone.
        StorageError: the store failed.
    """
    tables = [DOCUMENT_SCHEMA.empty_table()]
    for file in files:
        previous: str | None = None
        with storage.open_input(file.path) as source:
            native = pa.PythonFile(source, mode="r")
            for batch in read_batches(native, file.path, DOCUMENT_SCHEMA.names):
                if not batch.num_rows:
                    continue
                found = batch.filter(document_mask(batch.column("id"), previous))
                previous = batch.column("id")[-1].as_py()
                if ids is not None:
                    found = found.filter(pc.is_in(found.column("id"), ids))
                tables.append(pa.Table.from_batches([found]).cast(DOCUMENT_SCHEMA))
    return pa.concat_tables(tables)


def _paired(gone: pa.Table, come: pa.Table) -> pa.Table:
    position = pc.index_in(come["id"], value_set=gone["id"].combine_chunks())
    same = pc.equal(come["content_hash"], gone["content_hash"].take(position))
    pairs = pa.table(
        [come["id"], gone["file"].take(position), come["file"], pc.fill_null(same, False)],
        schema=PAIR_SCHEMA,
    )
    left = gone.filter(pc.invert(pc.is_in(gone["id"], value_set=come["id"].combine_chunks())))
    only_old = pa.table(
        [
            left["id"],
            left["file"],
            pa.nulls(left.num_rows, pa.int32()),
            pa.repeat(False, left.num_rows),
        ],
        schema=PAIR_SCHEMA,
    )
    return pa.concat_tables([pairs, only_old])
