"""The change feed: which documents a snapshot adds, updates and deletes. Knows no encoder or Ray.

The feed of snapshot N lies in the files that its manifest lists under `changes`. It is written
before the commit, so that a visible snapshot always has its feed; files of lost races are never
listed and are collected with other orphans. Feeds of consecutive snapshots are composed by reading
them in order: the first word on a document tells whether it was there before, the last one whether
it is there now. Where its rows lie now follows from the maps `rewritten` of later manifests.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import ConfigError, CorruptFileError, MissingChangesError, MissingFileError
from pipeline.snapshot.buckets import MAX_ROWS_IN_MEMORY, Buckets, num_buckets_for
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.documents import documents_of
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.storage import Storage

CHANGES = "changes"
ADD, UPDATE, DELETE = "add", "update", "delete"
READ_ROWS = 1 << 16

# `file` is the data file that holds the document's rows in that snapshot; null for deletes.
CHANGE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("op", pa.string(), nullable=False),
        pa.field("file", pa.string()),
    ]
)
# Unchanged documents that `rewritten` does not lead to, and the file that holds them now.
MOVE_SCHEMA = pa.schema(
    [pa.field("id", pa.string(), nullable=False), pa.field("file", pa.string(), nullable=False)]
)

_OPS = pa.array([ADD, UPDATE, DELETE])
_ADD, _UPDATE, _DELETE, _MOVE = range(4)
# A row of some feed, as it is composed: `file` counts in a list of paths, and is null for deletes.
_ROW_SCHEMA = pa.schema([("id", pa.string()), ("op", pa.int8()), ("file", pa.int32())])


def write_changes(storage: Storage, number: int, run_id: str, changes: pa.Table) -> str:
    """Write a part of a snapshot's feed, before the commit.

    Args:
        storage: the snapshot directory.
        number: of the snapshot that is about to be committed.
        run_id: the first part of the file's name.
        changes: CHANGE_SCHEMA, any order.

    Returns: the path of the file, for the manifest.

    Raises:
        StorageError: the store failed.
    """
    return _write(storage, number, run_id, changes.cast(CHANGE_SCHEMA))


def write_moves(storage: Storage, number: int, run_id: str, moves: pa.Table) -> str:
    """Write a part of what the manifest's `moved` lists; MOVE_SCHEMA, else as `write_changes`."""
    return _write(storage, number, run_id, moves.cast(MOVE_SCHEMA))


def _write(storage: Storage, number: int, run_id: str, table: pa.Table) -> str:
    path = f"{CHANGES}/{number:08d}/{run_id}-{uuid.uuid4().hex}.parquet"
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    storage.put_if_absent(path, buffer.getvalue())
    return path


def same_vectors(old: Snapshot, new: Snapshot) -> bool:
    """Whether a document of equal content has equal rows in both: same encoder, same columns."""
    return old.fingerprint == new.fingerprint and old.schema.equals(new.schema)


def operations(pairs: pa.Table, same: bool) -> tuple[pa.ChunkedArray, NDArray[np.bool_]]:
    """What a feed has to say of each document.

    Args:
        pairs: `documents.PAIR_SCHEMA`.
        same: as `same_vectors` of the two snapshots.

    Returns: the operation, null for none; and True where a document is in both, unchanged.
    """
    is_old, is_new = (pairs[name].is_valid() for name in ("old_file", "new_file"))
    unchanged = pc.and_(pairs["same_content"], same)
    op = pc.if_else(is_old, pc.if_else(is_new, UPDATE, DELETE), ADD)
    return pc.if_else(unchanged, pa.scalar(None, pa.string()), op), unchanged.to_numpy()


def read_feed_file(storage: Storage, path: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of one file of a feed, READ_ROWS at a time.

    Args:
        storage: the snapshot directory.
        path: as the manifest lists it.
        schema: CHANGE_SCHEMA or MOVE_SCHEMA; other columns are left out.

    Raises:
        MissingChangesError: the file is gone.
        CorruptFileError: it cannot be read, or its columns are others.
    """
    where = storage.url_of(path)
    try:
        with storage.open_input(path) as source:
            parquet = pq.ParquetFile(source, page_checksum_verification=True)
            found = parquet.schema_arrow
            for item in schema:
                if item.name not in found.names or found.field(item.name).type != item.type:
                    raise CorruptFileError(
                        f"{where}: a column {item.name!r} of {item.type} is expected, found "
                        f"{', '.join(f'{column.name}: {column.type}' for column in found)}"
                    )
            for batch in parquet.iter_batches(READ_ROWS, columns=schema.names):
                yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)
    except MissingFileError as error:
        raise MissingChangesError(f"{where}: this file of a change feed is gone. {_ADVICE}") from (
            error
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptFileError(f"{where}: cannot be decoded: {error}. {_ADVICE}") from error


def read_changes(
    store: SnapshotStore, old: int | None, new: int, *, max_rows: int = MAX_ROWS_IN_MEMORY
) -> Iterator[pa.Table]:
    """What to do to get from one snapshot to a later one: one row a document that differs.

    Only manifests and feeds are read. The exception: a document that changed several times may be
    as it was in the end, and is then left out; to see that, its content hashes are read from the
    data files of both snapshots. (Where the old manifest has expired, such a document comes as an
    update.) Where the encoders or the columns of the two differ, all documents are changes.

    Args:
        store: the snapshots.
        old: the snapshot that the reader has; None is nothing at all, and then every document is
            an `add`.
        new: the one that it wants, not before `old`.
        max_rows: rows of the feeds that are held in memory at once, about; a million take 100 to
            300 MB. Above it they wait on the local disk (13 bytes and an id each). The paths of
            all files that the feeds name are held as well.

    Returns: tables of CHANGE_SCHEMA, at least one; no id stands twice. `op` is add, update or
        delete against the state at `old`, `file` holds the document's rows in `new`.

    Raises:
        MissingChangesError: a manifest between the two has expired, or recorded no feed: read the
            snapshot `new` as a whole instead.
        ConfigError: there is no snapshot `new`, or it is before `old`.
        CorruptFileError: a feed cannot be read, or names files that are not in `new`.
        StorageError: the store failed.
    """
    if old is None:
        return _everything(store.storage, store.load(new))
    if not 0 < old <= new:
        raise ConfigError(f"{store.url}: there is no way from snapshot {old} back to {new}")
    after = store.load(new)
    if old == new:
        return iter([CHANGE_SCHEMA.empty_table()])
    numbers = store.numbers()
    missing = sorted(set(range(old + 1, new)) - set(numbers))
    if missing:
        raise MissingChangesError(
            f"{store.url}: the way from snapshot {old} to {new} has a gap: {missing[0]} has "
            f"expired. {_ADVICE}"
        )
    steps = [*(store.load(number) for number in range(old + 1, new)), after]
    for step in steps:
        if step.changes is None:
            raise MissingChangesError(
                f"{store.url}: snapshot {step.number} recorded no change feed. {_ADVICE}"
            )
    before = store.load(old) if old in numbers else None
    return _composed(store.storage, before, steps, max_rows)


_ADVICE = "Read the newer snapshot as a whole (old: None) and follow the feed from there"


def _everything(storage: Storage, snapshot: Snapshot) -> Iterator[pa.Table]:
    for file in snapshot.files:
        ids = documents_of(storage, [file])["id"]
        columns = [ids, pa.repeat(ADD, len(ids)), pa.repeat(file.path, len(ids))]
        yield pa.table(columns, schema=CHANGE_SCHEMA)
    if not snapshot.files:
        yield CHANGE_SCHEMA.empty_table()


def _composed(
    storage: Storage, before: Snapshot | None, steps: Sequence[Snapshot], max_rows: int
) -> Iterator[pa.Table]:
    places = _Places(storage, steps)
    feeds = [
        (step.number, path, schema)
        for step in steps
        for paths, schema in ((step.changes or (), CHANGE_SCHEMA), (step.moved, MOVE_SCHEMA))
        for path in paths
    ]
    num_rows = sum(_num_rows(storage, path) for _, path, _ in feeds)
    with Buckets(_ROW_SCHEMA, num_buckets_for(num_rows, max_rows)) as buckets:
        for number, path, schema in feeds:
            for rows in read_feed_file(storage, path, schema):
                buckets.add(places.placed(number, rows))
        unchanged = _Unchanged(storage, before, steps[-1], places)
        for rows in buckets:
            net = _net(rows)
            yield places.named(net.table.filter(pa.array(~unchanged.among(net))))


def _num_rows(storage: Storage, path: str) -> int:
    try:
        with storage.open_input(path) as source:
            return int(pq.ParquetFile(source).metadata.num_rows)
    except MissingFileError as error:
        raise MissingChangesError(
            f"{storage.url_of(path)}: this file of a change feed is gone. {_ADVICE}"
        ) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptFileError(f"{storage.url_of(path)}: cannot be decoded: {error}") from error


class _Places:
    """Follows data files through later rewrites, and counts the files of the last snapshot."""

    def __init__(self, storage: Storage, steps: Sequence[Snapshot]) -> None:
        self.files = steps[-1].files
        self._storage = storage
        self._steps = {step.number: step for step in steps}
        self._position = {file.path: index for index, file in enumerate(self.files)}
        # What a document is told to be in and later deleted from may be gone without a trace.
        self._gone = len(self.files)
        self._found: dict[tuple[int, str], int] = {}

    def placed(self, number: int, rows: pa.Table) -> pa.Table:
        """Rows of one snapshot's feed in _ROW_SCHEMA, with where they lie in the last snapshot."""
        if "op" in rows.schema.names:
            op = pc.index_in(rows["op"], value_set=_OPS)
            if op.null_count:
                found = rows["op"].filter(op.is_null())[0].as_py()
                raise CorruptFileError(
                    f"{self._storage.url}: the feed of snapshot {number} has an operation {found!r}"
                )
        else:
            op = pa.repeat(_MOVE, rows.num_rows)
        path = rows["file"].combine_chunks().dictionary_encode()
        positions = [self._follow(number, value) for value in path.dictionary.to_pylist()]
        file = pa.array(positions, pa.int32()).take(path.indices)
        return pa.table([rows["id"], op.cast(pa.int8()), file], schema=_ROW_SCHEMA)

    def named(self, rows: pa.Table) -> pa.Table:
        """Rows of _ROW_SCHEMA as CHANGE_SCHEMA."""
        lost = pc.equal(rows["file"], self._gone)
        if pc.any(lost, min_count=0).as_py():
            raise CorruptFileError(
                f"{self._storage.url}: the feeds lead document "
                f"{rows['id'].filter(lost)[0].as_py()!r} to a file that snapshot "
                f"{max(self._steps)} does not have. {_ADVICE}"
            )
        paths = pa.array([file.path for file in self.files], pa.string())
        columns = [rows["id"], _OPS.take(rows["op"].combine_chunks()), paths.take(rows["file"])]
        return pa.table(columns, schema=CHANGE_SCHEMA)

    def _follow(self, number: int, path: str) -> int:
        if (number, path) not in self._found:
            now = path
            for later in range(number + 1, max(self._steps) + 1):
                now = self._steps[later].rewritten.get(now, now)
            self._found[number, path] = self._position.get(now, self._gone)
        return self._found[number, path]


@dataclass(frozen=True)
class _Net:
    """What is left of all words on each document; `num_words` counts them, `table` _ROW_SCHEMA."""

    table: pa.Table
    num_words: NDArray[np.int64]


def _net(rows: pa.Table) -> _Net:
    """Compose the rows of a bucket, which are in the order of the snapshots."""
    encoded = rows["id"].combine_chunks().dictionary_encode()
    code, op = encoded.indices.to_numpy(), rows["op"].to_numpy()
    num_ids = len(encoded.dictionary)
    is_word = np.flatnonzero(op != _MOVE)
    num_words = np.bincount(code[is_word], minlength=num_ids)
    first, last, last_row = (np.zeros(num_ids, np.int64) for _ in range(3))
    # Of several values for one place the last one stays.
    first[code[is_word][::-1]] = is_word[::-1]
    last[code[is_word]] = is_word
    last_row[code] = np.arange(len(code))
    was_there, is_there = op[first] != _ADD, op[last] != _DELETE
    net = np.where(is_there, np.where(was_there, _UPDATE, _ADD), _DELETE)
    kept = np.flatnonzero((num_words > 0) & (was_there | is_there))
    file = rows["file"].combine_chunks().take(pa.array(last_row[kept]))
    file = pc.if_else(pa.array(is_there[kept]), file, pa.scalar(None, pa.int32()))
    columns = [encoded.dictionary.take(pa.array(kept)), pa.array(net[kept], pa.int8()), file]
    return _Net(pa.table(columns, schema=_ROW_SCHEMA), num_words[kept])


class _Unchanged:
    """Finds documents that changed several times and ended as they had been."""

    def __init__(
        self, storage: Storage, before: Snapshot | None, after: Snapshot, places: _Places
    ) -> None:
        self._storage = storage
        self._places = places
        self._is_comparable = before is not None and same_vectors(before, after)
        old_files = before.files if before is not None else ()
        new_paths, old_paths = ({file.path for file in files} for files in (after.files, old_files))
        self._old_only = [file for file in old_files if file.path not in new_paths]
        self._is_kept = np.array([file.path in old_paths for file in after.files] + [False])

    def among(self, net: _Net) -> NDArray[np.bool_]:
        """True where a row of `net` is no change."""
        found = np.zeros(net.table.num_rows, bool)
        if not self._is_comparable:
            return found
        suspects = np.flatnonzero((net.num_words > 1) & (net.table["op"].to_numpy() == _UPDATE))
        file = pc.fill_null(net.table["file"], -1).to_numpy()[suspects]
        # Files never change: in a file of both snapshots, its rows are what they were.
        is_kept = self._is_kept[file]
        found[suspects[is_kept]] = True
        rest = suspects[~is_kept]
        if len(rest):
            found[rest] = self._same_content(net.table["id"].take(pa.array(rest)), file[~is_kept])
        return found

    def _same_content(self, ids: pa.ChunkedArray, file: NDArray[np.int64]) -> NDArray[np.bool_]:
        least, greatest = (value.as_py() for value in pc.min_max(ids).values())
        old_files = [f for f in self._old_only if f.min_id <= greatest and f.max_id >= least]
        new_files: list[DataFile] = [
            self._places.files[index]
            for index in np.unique(file).tolist()
            if index < len(self._places.files)
        ]
        old, new = (
            documents_of(self._storage, files, ids.combine_chunks())
            for files in (old_files, new_files)
        )
        hashes = [
            table["content_hash"].take(pc.index_in(ids, value_set=table["id"].combine_chunks()))
            for table in (old, new)
        ]
        same: NDArray[np.bool_] = pc.fill_null(pc.equal(*hashes), False).to_numpy()
        return same
