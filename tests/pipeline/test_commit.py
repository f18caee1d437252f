"""Commits: exclusive, repeatable, never lost, never guessed."""

from dataclasses import replace

import pytest

from pipeline.errors import (
    CommitConflictError,
    CommitUnknownError,
    ConfigError,
    CorruptFileError,
    StorageError,
    UnknownOutcomeError,
)
from pipeline.snapshot.commit import SnapshotStore, manifest_path
from pipeline.snapshot.metadata import DataFile, Snapshot
from pipeline.storage import Storage, open_storage
from tests.pipeline.racers import COMMITS_PER_RUN, commit_several, processes
from tests.pipeline.snapshots import snapshot

STORES = ["local", "memory", "moto", pytest.param("rgw", marks=pytest.mark.s3)]
NUM_COMMITTERS = 8


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> SnapshotStore:
    return SnapshotStore(open_storage(request.getfixturevalue(f"{request.param}_url")))


@pytest.fixture
def local_store(local_url: str) -> SnapshotStore:
    return SnapshotStore(open_storage(local_url))


def successor(parent: Snapshot | None, run_id: str) -> Snapshot:
    return snapshot(run_id=run_id).numbered(parent)


def test_an_empty_store_has_no_snapshot(store):
    assert store.numbers() == ()
    assert store.latest() is None
    with pytest.raises(ConfigError, match="no snapshot 1; found: none"):
        store.load(1)


def test_a_commit_is_seen_by_those_who_looked_before(store):
    reader = SnapshotStore(open_storage(store.url))
    assert reader.latest() is None
    first = store.commit(successor(None, "run-1"))
    assert reader.latest() == first
    second = store.commit(successor(first, "run-2"))
    assert reader.latest() == second
    assert reader.numbers() == (1, 2)
    assert reader.load(1) == first


def test_the_second_committer_gets_a_conflict_and_loses_nothing(store):
    first = store.commit(successor(None, "run-1"))
    with pytest.raises(CommitConflictError, match="run run-1 committed it first"):
        store.commit(successor(None, "run-2"))
    assert store.latest() == first


def test_a_repeated_commit_of_the_same_run_returns_what_was_stored(store):
    first = store.commit(successor(None, "run-1"))
    later = replace(successor(None, "run-1"), counts={"documents": 5})
    assert store.commit(later) == first
    second = store.commit(successor(first, "run-2"))
    assert store.commit(first) == first
    assert store.latest() == second


def test_a_commit_on_a_parent_that_is_not_the_latest_is_a_conflict(store):
    with pytest.raises(CommitConflictError, match="built on 4, the latest is none"):
        store.commit(snapshot(number=5, parent=4))
    assert store.numbers() == ()


def test_a_number_that_expired_is_not_filled_again(store):
    first = store.commit(successor(None, "run-1"))
    second = store.commit(successor(first, "run-2"))
    store.storage.delete(manifest_path(1))
    with pytest.raises(CommitConflictError):
        store.commit(successor(None, "run-3"))
    assert store.numbers() == (2,)
    assert store.latest() == second


def test_only_canonical_names_are_snapshots(store):
    first = store.commit(successor(None, "run-1"))
    for name in ("2.json", "000000002.json", "00000003.json.tmp", "x.json", "00000000.json"):
        store.storage.put(f"_snapshots/{name}", b"{}")
    store.storage.put("_snapshots/more/00000009.json", b"{}")
    assert store.numbers() == (1,)
    assert store.latest() == first


@pytest.mark.parametrize("kind", ["local", "moto", pytest.param("rgw", marks=pytest.mark.s3)])
def test_eight_concurrent_committers_lose_nothing(kind, request):
    storage = open_storage(request.getfixturevalue(f"{kind}_url"))
    with processes(NUM_COMMITTERS) as pool:
        runs = [f"run-{index}" for index in range(NUM_COMMITTERS)]
        committed = list(pool.map(commit_several, [storage] * NUM_COMMITTERS, runs))
    store = SnapshotStore(storage)
    total = NUM_COMMITTERS * COMMITS_PER_RUN
    assert store.numbers() == tuple(range(1, total + 1))
    for run, numbers in zip(runs, committed, strict=True):
        assert len(numbers) == COMMITS_PER_RUN
        for number in numbers:
            assert store.load(number).run_id.startswith(run)
    # Each commit adds one to what its parent counted: a lost update would show as a smaller sum.
    assert [store.load(number).counts["commits"] for number in store.numbers()] == list(
        range(1, total + 1)
    )


def test_commit_next_builds_again_on_what_the_winner_left(local_store):
    parents: list[int] = []

    def build(parent: Snapshot | None) -> Snapshot:
        parents.append(parent.number if parent else 0)
        if len(parents) == 1:
            local_store.commit(successor(None, "faster"))
        return successor(parent, "slower")

    committed = local_store.commit_next(build)
    assert parents == [0, 1]
    assert committed == local_store.latest()
    assert committed is not None
    assert committed.number == 2


def test_commit_next_may_find_nothing_to_do(local_store):
    assert local_store.commit_next(lambda parent: None) is None
    assert local_store.numbers() == ()


class FailingStorage(Storage):
    """A store that fails on the way: before the create is done, after it, or when looked at."""

    def fail(self, *steps: str) -> None:
        """Fail in these steps, one a create; `look` makes all later reads fail."""
        self._steps = list(steps)

    def put_if_absent(self, path: str, data: bytes) -> None:
        step = self._steps.pop(0) if self._steps else ""
        if step == "after":
            super().put_if_absent(path, data)
        if step == "look":
            self._steps = ["look"]
        if step:
            raise UnknownOutcomeError("connection lost")
        super().put_if_absent(path, data)

    def info(self, path):
        if self._steps == ["look"]:
            raise StorageError("connection lost")
        return super().info(path)


@pytest.fixture
def failing(local_url: str) -> FailingStorage:
    storage = FailingStorage("file", local_url)
    storage.fail()
    return storage


@pytest.mark.parametrize("step", ["before", "after"])
def test_a_lost_answer_is_found_out_by_looking(failing, step):
    store = SnapshotStore(failing)
    failing.fail(step)
    first = store.commit(successor(None, "run-1"))
    assert store.latest() == first
    assert store.numbers() == (1,)


def test_a_lost_answer_of_a_lost_race_is_a_conflict(failing, local_store):
    store = SnapshotStore(failing)
    failing.fail("before")
    original = store.latest_number
    winner = local_store.commit(successor(None, "winner"))
    store.latest_number = lambda: None  # as it was before the winner came
    with pytest.raises(CommitConflictError, match="winner"):
        store.commit(successor(None, "run-1"))
    store.latest_number = original
    assert store.latest() == winner


def test_an_outcome_that_looking_cannot_tell_is_reported_as_unknown(failing):
    store = SnapshotStore(failing)
    failing.fail("look")
    with pytest.raises(CommitUnknownError, match="Nothing was deleted"):
        store.commit(successor(None, "run-1"))


def test_a_store_that_never_answers_a_create_leaves_it_unknown(failing, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    failing.fail(*["before"] * 10)
    with pytest.raises(CommitUnknownError):
        SnapshotStore(failing).commit(successor(None, "run-1"))


def test_a_damaged_manifest_is_named(local_store):
    local_store.storage.put(manifest_path(1), b"{")
    with pytest.raises(CorruptFileError, match=r"_snapshots/00000001\.json: not JSON"):
        local_store.latest()
    misplaced = snapshot(number=3, parent=2).to_json()
    local_store.storage.put(manifest_path(1), misplaced)
    with pytest.raises(CorruptFileError, match="holds snapshot 3"):
        local_store.load(1)


FILES = [DataFile(f"data/r-{index}.parquet", 1, 1, 10, "0" * 64, {}, "a", "b") for index in "12345"]
