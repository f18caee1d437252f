"""Make an old snapshot the current state again, as a new snapshot that names the same files.

Nothing is copied and nothing is forgotten: the snapshots in between stay, and their feeds lead
across the rollback. Knows no Ray.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, MissingFileError
from pipeline.snapshot.buckets import MAX_ROWS_IN_MEMORY
from pipeline.snapshot.changes import (
    ADD,
    CHANGE_SCHEMA,
    DELETE,
    MOVE_SCHEMA,
    UPDATE,
    operations,
    same_vectors,
    write_changes,
    write_moves,
)
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.documents import DocumentPairs, document_pairs
from pipeline.snapshot.metadata import Snapshot
from pipeline.snapshot.tags import pinned
from pipeline.storage import Storage

NUM_THREADS = 16
MAX_NAMED = 5


@dataclass(frozen=True)
class RollbackReport:
    """What a rollback did, or would do: documents against what was current before.

    `snapshot` is None in a dry run, and where the current state is that of `target` already.
    """

    target: int
    parent: int
    snapshot: Snapshot | None
    num_added: int
    num_changed: int
    num_deleted: int
    num_unchanged: int


def rollback(
    store: SnapshotStore,
    number: int,
    *,
    dry_run: bool = False,
    max_rows: int = MAX_ROWS_IN_MEMORY,
) -> RollbackReport:
    """Commit a snapshot that equals an old one: files, fingerprint, schema, configuration and key.

    Because the idempotency key is that of the old one, a nightly run over the same corpus finds
    nothing to do; over a newer corpus it brings the newer documents in again.

    Ids and content hashes are read from the files that only one of the two states names. A tag
    keeps the old snapshot from expiring meanwhile. After a lost race it starts over on what the
    winner left.

    Args:
        store: the snapshots.
        number: the snapshot to return to.
        dry_run: compare only; write nothing.
        max_rows: documents in memory at once, about; see `documents.document_pairs`.

    Raises:
        ConfigError: there is no such snapshot, or some of its files are gone.
        CommitConflictError: the snapshot is being expired, or the race was lost too often.
        CommitUnknownError: the store did not say whether the commit happened.
        StorageError: the store failed.
    """
    if dry_run:
        target = _checked_target(store, number)
        parent = store.latest()
        assert parent is not None
        with document_pairs(store.storage, parent, target, max_rows=max_rows) as pairs:
            return _Feed(parent, target, pairs).report(None)
    with pinned(store, number, "rollback"):
        target = _checked_target(store, number)
        run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
        reports: list[RollbackReport] = []

        def build(parent: Snapshot | None) -> Snapshot | None:
            assert parent is not None
            with document_pairs(store.storage, parent, target, max_rows=max_rows) as pairs:
                feed = _Feed(parent, target, pairs)
                reports.append(feed.report(None))
                if _equal(parent, target):
                    return None
                changes, moved = feed.write(store.storage, run_id)
            return _successor(parent, target, run_id, feed, (changes, moved))

        committed = store.commit_next(build)
    return RollbackReport(**{**vars(reports[-1]), "snapshot": committed})


def _checked_target(store: SnapshotStore, number: int) -> Snapshot:
    """The snapshot, after its files were found to be there."""
    target = store.load(number)

    def is_wrong(index: int) -> bool:
        file = target.files[index]
        try:
            return store.storage.size_bytes(file.path) != file.size_bytes
        except MissingFileError:
            return True

    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="rollback") as pool:
        wrong = [
            target.files[index].path
            for index, is_bad in enumerate(pool.map(is_wrong, range(len(target.files))))
            if is_bad
        ]
    if wrong:
        shown = ", ".join(wrong[:MAX_NAMED]) + (", ..." if len(wrong) > MAX_NAMED else "")
        raise ConfigError(
            f"{store.url}: cannot return to snapshot {number}: {len(wrong)} of its "
            f"{len(target.files)} files are gone or have another size: {shown}. Restore them, or "
            "choose another snapshot"
        )
    return target


def _equal(parent: Snapshot, target: Snapshot) -> bool:
    """Whether the two are the same state, whoever made them."""
    return (
        set(parent.files) == set(target.files)
        and same_vectors(parent, target)
        and parent.idempotency_key == target.idempotency_key
    )


class _Feed:
    """The change feed from the current state back to the old one."""

    def __init__(self, parent: Snapshot, target: Snapshot, pairs: DocumentPairs) -> None:
        self._parent, self._target, self._pairs = parent, target, pairs
        self._same_vectors = same_vectors(parent, target)
        self.counts = {ADD: 0, UPDATE: 0, DELETE: 0}
        # For each file of the parent: the old file that holds most of its unchanged documents.
        self._leads_to = np.full(len(parent.files), -1, np.int64)
        most = np.zeros(len(parent.files), np.int64)
        for old, new, num_documents in self._unchanged_by_file():
            if num_documents > most[old]:
                most[old], self._leads_to[old] = num_documents, new

    @property
    def rewritten(self) -> dict[str, str]:
        """Files of the parent, with the files that hold (most of) their unchanged documents."""
        return {
            self._parent.files[old].path: self._target.files[new].path
            for old, new in enumerate(self._leads_to.tolist())
            if new >= 0
        }

    def report(self, snapshot: Snapshot | None) -> RollbackReport:
        """The counts."""
        num_new = self._target.num_documents - self.counts[ADD] - self.counts[UPDATE]
        return RollbackReport(
            target=self._target.number,
            parent=self._parent.number,
            snapshot=snapshot,
            num_added=self.counts[ADD],
            num_changed=self.counts[UPDATE],
            num_deleted=self.counts[DELETE],
            num_unchanged=num_new,
        )

    def write(self, storage: Storage, run_id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Write the feed; returns the paths for `changes` and for `moved`."""
        number = self._parent.number + 1
        paths = pa.array([file.path for file in self._target.files], pa.string())
        changes, moved = [], []
        for pairs in self._pairs:
            ops, same = operations(pairs, self._same_vectors)
            file = paths.take(pairs["new_file"])
            rows = pa.table([pairs["id"], ops, file], names=CHANGE_SCHEMA.names)
            rows = rows.filter(ops.is_valid())
            if rows.num_rows:
                changes.append(write_changes(storage, number, run_id, rows))
            old = pc.fill_null(pairs["old_file"], 0).to_numpy()
            strays = same & (self._leads_to[old] != pc.fill_null(pairs["new_file"], -1).to_numpy())
            if strays.any():
                rows = pa.table([pairs["id"], file], names=MOVE_SCHEMA.names)
                moved.append(write_moves(storage, number, run_id, rows.filter(pa.array(strays))))
        return tuple(changes), tuple(moved)

    def _unchanged_by_file(self) -> Iterator[tuple[int, int, int]]:
        """Old file, new file, and how many unchanged documents went from one to the other."""
        total: dict[tuple[int, int], int] = {}
        for pairs in self._pairs:
            ops, same = operations(pairs, self._same_vectors)
            for item in pc.value_counts(ops).to_pylist():
                if item["values"] is not None:
                    self.counts[item["values"]] += item["counts"]
            files_N2 = np.stack([pairs[name].to_numpy()[same] for name in ("old_file", "new_file")])
            keys, counts = np.unique(files_N2.astype(np.int64), axis=1, return_counts=True)
            for (old, new), count in zip(keys.T.tolist(), counts.tolist(), strict=True):
                total[old, new] = total.get((old, new), 0) + count
        for (old, new), count in sorted(total.items()):
            yield old, new, count


def _successor(
    parent: Snapshot,
    target: Snapshot,
    run_id: str,
    feed: _Feed,
    paths: tuple[tuple[str, ...], tuple[str, ...]],
) -> Snapshot:
    return Snapshot.new(
        number=parent.number + 1,
        parent=parent.number,
        run_id=run_id,
        idempotency_key=target.idempotency_key,
        operation="rollback",
        fingerprint=target.fingerprint,
        encoder=target.encoder,
        config=target.config,
        schema=target.schema,
        partition_columns=target.partition_columns,
        files=target.files,
        rejected_files=target.rejected_files,
        counts={
            **{name: target.counts[name] for name in ("rejected",) if name in target.counts},
            "documents": target.num_documents,
            "rows": sum(file.num_rows for file in target.files),
            "added": feed.counts[ADD],
            "changed": feed.counts[UPDATE],
            "deleted": feed.counts[DELETE],
            "unchanged": feed.report(None).num_unchanged,
        },
        lineage={**target.lineage, "rollback_to": target.number},
        changes=paths[0],
        rewritten=feed.rewritten,
        moved=paths[1],
    )
