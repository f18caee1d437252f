"""What changed between two snapshots, by document id and content hash. Changes nothing.

Files that both snapshots name hold the same documents; only the others are read, and of them only
two columns. Memory holds the ids of those files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data_files import document_mask, read_batches, verified_file
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.storage import Storage

_SCHEMA = pa.schema([("id", pa.string()), ("content_hash", pa.binary(16))])


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
    storage: Storage, old: Snapshot, new: Snapshot, *, num_ids: int = 10
) -> SnapshotDiff:
    """Compare two snapshots of one directory.

    Args:
        storage: the snapshot directory.
        old: the one to start from.
        new: the other one.
        num_ids: how many ids to name of each kind.

    Raises:
        CorruptFileError: a file that only one of them names is damaged.
        StorageError: the store failed.
    """
    old_paths, new_paths = ({file.path for file in item.files} for item in (old, new))
    gone = _documents(storage, [file for file in old.files if file.path not in new_paths])
    come = _documents(storage, [file for file in new.files if file.path not in old_paths])
    position = pc.index_in(come["id"], value_set=gone["id"].combine_chunks())
    is_new = pc.is_null(position)
    same = pc.equal(come["content_hash"], gone["content_hash"].take(position))
    is_changed = pc.invert(pc.fill_null(same, True))
    is_gone = pc.invert(pc.is_in(gone["id"], value_set=come["id"].combine_chunks()))
    added, changed = come["id"].filter(is_new), come["id"].filter(is_changed)
    return SnapshotDiff(
        old=old.number,
        new=new.number,
        added=_id_set(added, num_ids),
        changed=_id_set(changed, num_ids),
        deleted=_id_set(gone["id"].filter(is_gone), num_ids),
        num_unchanged=new.num_documents - len(added) - len(changed),
        same_fingerprint=old.fingerprint == new.fingerprint,
        same_schema=old.schema.equals(new.schema),
        added_files=tuple(sorted(new_paths - old_paths)),
        removed_files=tuple(sorted(old_paths - new_paths)),
    )


def _documents(storage: Storage, files: Sequence[DataFile]) -> pa.Table:
    batches = [pa.RecordBatch.from_pylist([], schema=_SCHEMA)]
    for file in files:
        previous: str | None = None
        with verified_file(storage, file) as source:
            for batch in read_batches(source, file.path, _SCHEMA.names):
                if batch.num_rows:
                    firsts = batch.filter(document_mask(batch.column("id"), previous))
                    batches.append(firsts.cast(_SCHEMA))
                    previous = batch.column("id")[-1].as_py()
    return pa.Table.from_batches(batches)


def _id_set(ids: pa.ChunkedArray, num_ids: int) -> IdSet:
    smallest = pc.select_k_unstable(ids, num_ids, [("ids", "ascending")]) if num_ids else []
    return IdSet(len(ids), tuple(ids.take(smallest).to_pylist()) if num_ids else ())
