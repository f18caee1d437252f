"""Expiring: the right snapshots go, whole, and nothing else."""

import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.errors import ConfigError, CorruptFileError
from pipeline.snapshot.changes import read_changes
from pipeline.snapshot.commit import SnapshotStore, manifest_path
from pipeline.snapshot.expire import expire
from pipeline.snapshot.tags import put_tag
from pipeline.storage import Storage, open_storage
from tests.pipeline.histories import Document, Night, difference
from tests.pipeline.snapshots import snapshot

STORES = ["local", "memory", "moto", pytest.param("rgw", marks=pytest.mark.s3)]
NOW = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)


def fill(url: str, number: int = 5) -> SnapshotStore:
    """Snapshots that each change a document and add one."""
    store = SnapshotStore(open_storage(url))
    for index in range(number):
        Night({"same": Document(f"{index}"), f"doc-{index}": Document("one")}).commit(store)
    return store


@pytest.mark.parametrize("kind", STORES)
def test_the_newest_stay_and_what_goes_takes_its_feed_along(kind, request):
    store = fill(request.getfixturevalue(f"{kind}_url"))
    data = store.storage.list_files("data")
    planned = expire(store, keep=2, dry_run=True)
    assert store.numbers() == (1, 2, 3, 4, 5)
    report = expire(store, keep=2)
    assert (report.expired, report.kept, report.tagged) == ((1, 2, 3), (4, 5), ())
    assert replace(report, dry_run=True) == planned
    assert report.num_change_files == 6
    assert store.numbers() == (4, 5)
    feeds = {info.path.split("/")[1] for info in store.storage.list_files("changes")}
    assert feeds == {"00000004", "00000005"}
    assert store.storage.list_files("_expiring") == []
    assert store.storage.list_files("data") == data
    found = next(read_changes(store, 3, 5)).to_pylist()
    assert {row["id"]: row["op"] for row in found} == {
        "same": "update",
        "doc-3": "add",
        "doc-4": "add",
    }


def test_the_latest_always_stays(local_url):
    store = fill(local_url, 2)
    assert expire(store, keep=1).kept == (2,)
    assert expire(store, keep=1).expired == ()
    assert expire(store, keep_days=0, now=NOW + timedelta(days=9999)).kept == (2,)


def test_a_tagged_one_stays(local_url):
    store = fill(local_url)
    put_tag(store, "prod", 2)
    report = expire(store, keep=1)
    assert (report.expired, report.kept, report.tagged) == ((1, 3, 4), (2, 5), (2,))
    assert len(store.load(2).files) > 0


def dated(url: str, *days_ago: float) -> SnapshotStore:
    store = SnapshotStore(open_storage(url))
    for number, days in enumerate(days_ago):
        created_at = (NOW - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
        made = snapshot(run_id=f"run-{number}").numbered(store.latest())
        store.commit(replace(made, created_at=created_at))
    return store


def test_days_count_from_when_a_newer_one_took_its_place(local_url):
    """The second is old, but until yesterday it was what everybody read."""
    store = dated(local_url, 40, 30, 1, 0)
    report = expire(store, keep_days=7, now=NOW, dry_run=True)
    assert report.expired == (1,)
    assert expire(store, keep_days=31, now=NOW, dry_run=True).expired == ()
    assert expire(store, keep_days=0.5, now=NOW).expired == (1, 2)


def test_of_two_limits_the_kinder_one_holds(local_url):
    store = dated(local_url, 40, 30, 20, 10, 0)
    assert expire(store, keep=3, keep_days=1, now=NOW, dry_run=True).expired == (1, 2)
    assert expire(store, keep=1, keep_days=15, now=NOW, dry_run=True).expired == (1, 2)


@pytest.mark.parametrize(
    "limits", [{}, {"keep": 0}, {"keep": -1}, {"keep_days": -1}, {"keep_days": float("nan")}]
)
def test_a_senseless_limit_is_refused(local_url, limits):
    store = fill(local_url, 2)
    with pytest.raises(ConfigError, match="expire"):
        expire(store, **limits)
    assert store.numbers() == (1, 2)


def test_a_time_that_is_none_stops_it(local_url):
    store = fill(local_url, 2)
    data = store.storage.read_bytes(manifest_path(2), 1 << 20)
    store.storage.put(manifest_path(2), data.replace(b'"created_at": "2', b'"created_at": "x'))
    with pytest.raises(CorruptFileError, match="created_at"):
        expire(store, keep_days=1)


class Listing(Storage):
    """A store in which another commits and expires right after a listing."""

    def glob(self, pattern):
        found = super().glob(pattern)
        if getattr(self, "then", None):
            then, self.then = self.then, None
            then()
        return found


def test_the_latest_is_found_though_it_is_replaced_and_expired_meanwhile(local_url):
    store = fill(local_url, 2)
    storage = Listing("file", local_url)

    def replaced() -> None:
        Night({"new": Document("one")}).commit(store)
        expire(store, keep=1)

    storage.then = replaced
    latest = SnapshotStore(storage).latest()
    assert latest is not None
    assert latest.number == 3


KILLED = """
import os, signal, sys
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.expire import expire
from pipeline.storage import Storage

class Dying(Storage):
    left = int(sys.argv[2])
    def put_if_absent(self, path, data):
        self.count()
        super().put_if_absent(path, data)
    def delete(self, path):
        self.count()
        super().delete(path)
    def count(self):
        if not Dying.left:
            os.kill(os.getpid(), signal.SIGKILL)
        Dying.left -= 1

expire(SnapshotStore(Dying("file", sys.argv[1])), keep=2)
"""


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 6, 9])
def test_a_kill_between_any_two_steps_leaves_whole_snapshots(local_url, steps):
    store = fill(local_url)
    expected = {n: difference(store.storage, None, store.load(n)) for n in store.numbers()}
    done = subprocess.run([sys.executable, "-c", KILLED, local_url, str(steps)], check=False)
    assert done.returncode == -signal.SIGKILL
    numbers = store.numbers()
    assert numbers == tuple(range(numbers[0], 6))
    assert numbers[-2:] == (4, 5)
    for number in numbers:
        made = store.load(number)
        assert difference(store.storage, None, made) == expected[number]
        assert all(store.storage.exists(path) for path in made.changes or ())
    # The next one finishes it.
    expire(store, keep=2)
    assert store.numbers() == (4, 5)
