"""Maintenance that is too much for one machine: merges in the tasks of a Ray cluster.

Knows how to spread work; what the work is stands in `pipeline.snapshot.compact`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import ray

from pipeline.cluster import connect, ray_errors
from pipeline.snapshot import compact as local
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.compact import Merge, merge_files
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.storage import Storage


def compact(
    store: SnapshotStore, *, below_bytes: int, target_file_bytes: int | None = None
) -> Snapshot | None:
    """Merge the small files of the latest snapshot: on the cluster where there is one, a task each.

    Without a cluster (none joined, and RAY_ADDRESS not set) threads of this process do it.
    Arguments, result and errors are those of `pipeline.snapshot.compact.compact`; besides,

    Raises:
        ClusterError: Ray failed; nothing was committed.
    """
    run = None
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        connect()
        run = InTasks(store.storage)
    return local.compact(
        store, below_bytes=below_bytes, target_file_bytes=target_file_bytes, run=run
    )


class InTasks:
    """Carries out merges on a Ray cluster, one CPU each."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __call__(self, merges: Sequence[Merge]) -> Sequence[DataFile]:
        """The new files, in the order of the merges."""
        task = ray.remote(num_cpus=1)(merge_files)
        with ray_errors():
            files: list[DataFile] = ray.get([task.remote(self._storage, m) for m in merges])
        return files
