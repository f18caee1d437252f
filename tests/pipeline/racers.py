"""What the processes of a race do; imported once by the server that they are forked from."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress

import s3fs  # noqa: F401  (imported here so that every process has it from the start)

from pipeline.errors import AlreadyExistsError, CommitConflictError, ConfigError
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.compact import compact
from pipeline.snapshot.expire import expire
from pipeline.snapshot.garbage import collect_garbage
from pipeline.snapshot.metadata import Snapshot
from pipeline.snapshot.rollback import rollback
from pipeline.snapshot.tags import put_tag
from pipeline.storage import Storage
from tests.pipeline.histories import Document, Night
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


def keep_house(storage: Storage, index: int) -> list[str]:
    """One of eight: half add and change documents as a nightly run does, half maintain.

    Returns: the ids that this process has put, each with its last content.
    """
    store = SnapshotStore(storage)
    put: dict[str, str] = {}
    for round_ in range(2):
        if index % 2 == 0:
            mine = f"doc-{index}-{round_}"
            put |= {mine: "one", f"mine-{index}": f"{round_}"}
            documents = {name: Document(put[name]) for name in (mine, f"mine-{index}")}
            Night(documents).commit(store)
        elif index == 1:
            compact(store, below_bytes=1 << 20)
        elif index == 3:
            expire(store, keep=4)
        elif index == 5:
            collect_garbage(store, older_than_hours=24)
        else:
            _tag_and_return(store, f"tag-{round_}")
    return [f"{name} {text}" for name, text in put.items()]


def _tag_and_return(store: SnapshotStore, name: str) -> None:
    """Tag the latest snapshot, and see what a return to it would mean."""
    number = store.latest_number()
    if number is not None:
        with suppress(CommitConflictError, ConfigError):  # expired meanwhile
            put_tag(store, name, number)
            assert rollback(store, number, dry_run=True).target == number
