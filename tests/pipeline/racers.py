"""What the processes of a race do; imported once by the server that they are forked from."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import s3fs  # noqa: F401  (imported here so that every process has it from the start)

from pipeline.errors import AlreadyExistsError
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import Snapshot
from pipeline.storage import Storage
from tests.pipeline.snapshots import snapshot

NUM_KEYS = 10
COMMITS_PER_RUN = 3


def processes(number: int) -> ProcessPoolExecutor:
    """A pool of new processes that share no memory, clients or threads with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # The server keeps the environment of its start, but a test sets its store's.
    return ProcessPoolExecutor(number, context, _set_environment, (dict(os.environ),))


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def create_many(storage: Storage, index: int) -> list[int]:
    """Try to create all keys; returns the numbers of those that this process created."""
    won = []
    for number in range(NUM_KEYS):
        try:
            storage.put_if_absent(f"race/{number}", b"%d" % index)
        except AlreadyExistsError:
            continue
        won.append(number)
    return won


def commit_several(storage: Storage, run: str) -> list[int]:
    """Commit several snapshots that each count one more than their parent; returns the numbers."""
    store = SnapshotStore(storage)
    numbers = []
    for index in range(COMMITS_PER_RUN):

        def build(parent: Snapshot | None, run_id: str = f"{run}-{index}") -> Snapshot:
            commits = parent.counts["commits"] + 1 if parent else 1
            return snapshot(run_id=run_id, counts={"commits": commits}).numbered(parent)

        committed = store.commit_next(build)
        assert committed is not None
        numbers.append(committed.number)
    return numbers
