"""What changed between two snapshots, by document id and content hash. Changes nothing.

Files that both snapshots name hold the same documents; only the others are read, and of them only
two columns. Memory holds about a million ids (`max_rows`); more wait on the local disk.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.snapshot.buckets import MAX_ROWS_IN_MEMORY
from pipeline.snapshot.documents import document_pairs
from pipeline.snapshot.metadata import Snapshot
from pipeline.storage import Storage


@dataclass(frozen=True)
class IdSet:
    """How many documents, and the first few of their ids in order."""

    count: int
    first_ids: tuple[str, ...]


@dataclass(frozen=True)
class SnapshotDiff:
    """What is different in `new`, seen from `old`.

    `changed` documents have another content hash. When the fingerprints differ, the vectors of
    unchanged documents differ too.
    """

    old: int
    new: int
    added: IdSet
    changed: IdSet
    deleted: IdSet
    num_unchanged: int
    same_fingerprint: bool
    same_schema: bool
    added_files: tuple[str, ...]
    removed_files: tuple[str, ...]


def compare_snapshots(
    storage: Storage,
    old: Snapshot,
    new: Snapshot,
    *,
    num_ids: int = 10,
    max_rows: int = MAX_ROWS_IN_MEMORY,
) -> SnapshotDiff:
    """Compare two snapshots of one directory.

    Args:
        storage: the snapshot directory.
        old: the one to start from.
        new: the other one.
        num_ids: how many ids to name of each kind.
        max_rows: documents in memory at once, about.

    Raises:
        CorruptFileError: a file that only one of them names is damaged.
        StorageError: the store failed.
    """
    old_paths, new_paths = ({file.path for file in item.files} for item in (old, new))
    added, changed, deleted = (_IdCollector(num_ids) for _ in range(3))
    with document_pairs(storage, old, new, max_rows=max_rows) as pairs:
        for table in pairs:
            is_old, is_new = table["old_file"].is_valid(), table["new_file"].is_valid()
            differs = pc.invert(table["same_content"])
            added.add(table["id"].filter(pc.invert(is_old)))
            deleted.add(table["id"].filter(pc.invert(is_new)))
            changed.add(table["id"].filter(pc.and_(pc.and_(is_old, is_new), differs)))
    return SnapshotDiff(
        old=old.number,
        new=new.number,
        added=added.found(),
        changed=changed.found(),
        deleted=deleted.found(),
        num_unchanged=new.num_documents - added.count - changed.count,
        same_fingerprint=old.fingerprint == new.fingerprint,
        same_schema=old.schema.equals(new.schema),
        added_files=tuple(sorted(new_paths - old_paths)),
        removed_files=tuple(sorted(old_paths - new_paths)),
    )


class _IdCollector:
    """Counts ids and keeps the first few in order."""

    def __init__(self, num_ids: int) -> None:
        self.count = 0
        self._num_ids = num_ids
        self._first: list[str] = []

    def add(self, ids: pa.ChunkedArray) -> None:
        self.count += len(ids)
        if self._num_ids and len(ids):
            smallest = pc.select_k_unstable(ids, self._num_ids, [("ids", "ascending")])
            few = [*self._first, *ids.take(smallest).to_pylist()]
            self._first = heapq.nsmallest(self._num_ids, few)

    def found(self) -> IdSet:
        return IdSet(self.count, tuple(self._first))
