"""Garbage collection: what nobody can need goes, and nothing else."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.errors import ConfigError, CorruptFileError
from pipeline.snapshot.commit import SnapshotStore, manifest_path
from pipeline.snapshot.expire import expire
from pipeline.snapshot.garbage import collect_garbage
from pipeline.snapshot.rollback import rollback
from pipeline.storage import Storage, open_storage
from pipeline.verify import verify_snapshot
from tests.pipeline.histories import Document, Night, difference
from tests.pipeline.snapshots import snapshot, write_file

STORES = ["local", "memory", "moto", pytest.param("rgw", marks=pytest.mark.s3)]
HEX = "0123456789abcdef" * 2
DAY_S = 24 * 3600.0

# A run that died: what it leaves, all under names that it gives.
LEFT = [
    "_runs/dead/run.json",
    f"_runs/dead/{HEX}.json",
    f"data/lang=en/dead-{HEX}.parquet",
    f"data/dead-{HEX}.arrow",
    f"changes/00000009/dead-{HEX}.parquet",
    f"_rejected/dead/{HEX}.parquet",
    f"_probe-{HEX}",
    f"_expiring/{HEX}.json",
]
# Of others: never touched.
FOREIGN = [
    "README.md",
    "data/lang=en/notes.parquet",
    f"data/lang=en/dead-{HEX}.csv",
    f"data/lang=en/dead-{HEX}.parquet.bak",
    "_runs/dead/notes.txt",
    "_snapshots/00000003.json.tmp",
    "_tags/prod.txt",
    "index/vectors.bin",
    f"other/data/dead-{HEX}.parquet",
    f"changes/dead-{HEX}.parquet",
]


def fill(url: str) -> SnapshotStore:
    store = SnapshotStore(open_storage(url))
    Night({"a": Document("one"), "b": Document("one", "de")}).commit(store)
    Night({"a": Document("two")}, ["b"]).commit(store)
    return store


def put(store: SnapshotStore, *paths: str) -> None:
    for path in paths:
        store.storage.put(path, b"12345")


def paths(store: SnapshotStore) -> set[str]:
    return {info.path for info in store.storage.list_files()}


def later(hours: float = 80) -> float:
    return time.time() + hours * 3600


@pytest.mark.parametrize("kind", STORES)
def test_what_a_dead_run_left_goes_and_the_rest_stays(kind, request):
    store = fill(request.getfixturevalue(f"{kind}_url"))
    before = paths(store)
    put(store, *LEFT, *FOREIGN)
    planned = collect_garbage(store, dry_run=True, now=later())
    assert paths(store) == before | {*LEFT, *FOREIGN}
    report = collect_garbage(store, now=later())
    assert sorted(report.paths) == sorted(planned.paths) == sorted(LEFT)
    assert report.size_bytes == planned.size_bytes == 5 * len(LEFT)
    assert report.num_by_kind["data file"] == 2
    assert report.paths[0] == "_runs/dead/run.json"
    assert paths(store) == before | {*FOREIGN}
    for number in store.numbers():
        assert verify_snapshot(store.storage, store.load(number)).is_good


@pytest.mark.parametrize("kind", STORES)
def test_what_is_young_stays(kind, request):
    store = fill(request.getfixturevalue(f"{kind}_url"))
    put(store, *LEFT)
    report = collect_garbage(store)
    assert report.paths == ()
    assert report.num_young == len(LEFT)
    assert paths(store).issuperset(LEFT)
    assert not any(path.startswith("_probe") for path in paths(store) - set(LEFT))
    assert len(collect_garbage(store, older_than_hours=0, force=True, now=later(1)).paths) == 8


def test_what_expired_snapshots_named_goes(local_url):
    store = fill(local_url)
    expire(store, keep=1)
    report = collect_garbage(store, now=later())
    assert report.num_by_kind == {"data file": 2}
    assert verify_snapshot(store.storage, store.load(2)).orphans == ()


def test_all_that_manifests_name_stays(local_url):
    """Feeds, moves and rejected rows too."""
    from pipeline.snapshot.compact import compact

    store = fill(local_url)
    Night({"c": Document("one"), "d": Document("one"), "e": Document("one")}).commit(store)
    Night({"f": Document("one"), "g": Document("one")}).commit(store)
    compact(store, below_bytes=1 << 20)
    rollback(store, 4)
    assert store.latest().moved
    put(store, f"_rejected/run/{HEX}.parquet")
    parent = store.latest()
    made = snapshot(parent.files, rejected_files=[f"_rejected/run/{HEX}.parquet"], run_id="x")
    store.commit(made.numbered(parent))
    before = paths(store)
    assert collect_garbage(store, now=later(1000)).paths == ()
    assert paths(store) == before


def age(store: SnapshotStore, hours: float, *names: str) -> None:
    for name in names:
        os.utime(store.storage.url_of(name), (time.time() - hours * 3600,) * 2)


def test_a_run_that_is_at_work_keeps_all_that_runs_have_recorded(local_url):
    """It may be about to take over what a dead run has left."""
    store = fill(local_url)
    live = [f"data/live-{HEX}.parquet", f"_rejected/live/{HEX}.parquet", "_runs/live/run.json"]
    unrecorded = f"data/gone-{HEX}.parquet"
    put(store, *LEFT, *live, unrecorded)
    age(store, 100, *LEFT, *live, unrecorded)
    put(store, f"_runs/live/{HEX}.json")
    report = collect_garbage(store)
    assert sorted(report.paths) == [f"_expiring/{HEX}.json", f"_probe-{HEX}", unrecorded]
    assert paths(store).issuperset(live)
    assert f"data/dead-{HEX}.arrow" in paths(store)
    # Once its newest record is old as well, all of it goes.
    age(store, 100, f"_runs/live/{HEX}.json")
    assert len(collect_garbage(store).paths) == len(LEFT) - 2 + len(live) + 1


class Arriving(Storage):
    """Something happens at the first delete of a path that begins so."""

    def at(self, path: str, action) -> None:
        self._path, self._action = path, action

    def delete(self, path):
        if getattr(self, "_action", None) and path.startswith(self._path):
            action, self._action = self._action, None
            action()
        super().delete(path)


def test_a_run_that_starts_meanwhile_keeps_what_it_may_have_read_in_the_records(local_url):
    store = fill(local_url)
    put(store, *LEFT)
    age(store, 100, *LEFT)
    storage = Arriving("file", local_url)
    storage.at("_runs/dead/", lambda: put(store, "_runs/new/run.json"))
    report = collect_garbage(SnapshotStore(storage))
    assert f"data/dead-{HEX}.arrow" in paths(store)
    assert "_runs/dead/run.json" in report.paths


def test_a_commit_meanwhile_keeps_the_files_that_it_names(local_url):
    """A run that takes over old files commits while others are being removed."""
    store = fill(local_url)
    old = write_file(store.storage, ["x"], partition={"lang": "en"})
    put(store, "_runs/dead/run.json")
    age(store, 100, old.path, "_runs/dead/run.json")
    parent = store.latest()
    storage = Arriving("file", local_url)
    made = snapshot([*parent.files, old], run_id="late").numbered(parent)
    storage.at("_runs/dead/", lambda: store.commit(made))
    report = collect_garbage(SnapshotStore(storage))
    assert report.paths == ("_runs/dead/run.json",)
    assert verify_snapshot(store.storage, store.latest()).is_good


def test_hidden_files_of_killed_writers_go(local_url):
    store = fill(local_url)
    hidden = [f"data/lang=en/.{HEX}.partial", f".{HEX}.partial", f"_snapshots/.{HEX}.partial"]
    for name in hidden:
        with open(f"{local_url}/{name}", "wb") as file:
            file.write(b"x")
    assert collect_garbage(store).paths == ()
    age(store, 100, *hidden)
    assert sorted(collect_garbage(store).paths) == sorted(hidden)
    assert collect_garbage(store, now=later()).paths == ()


@pytest.mark.parametrize("hours", [23.9, 0, -1, float("nan")])
def test_a_limit_that_reaches_into_running_jobs_needs_force(local_url, hours):
    store = fill(local_url)
    with pytest.raises(ConfigError, match="expected 24 or more"):
        collect_garbage(store, older_than_hours=hours)
    if hours >= 0:
        collect_garbage(store, older_than_hours=hours, force=True)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data[:-20], CorruptFileError),
        (lambda data: data.replace(b'format_version": 1', b'format_version": 2'), ConfigError),
    ],
)
def test_a_manifest_that_cannot_be_read_stops_all(local_url, change, error):
    store = fill(local_url)
    put(store, *LEFT)
    data = store.storage.read_bytes(manifest_path(1), 1 << 20)
    store.storage.put(manifest_path(1), change(data))
    before = paths(store)
    with pytest.raises(error):
        collect_garbage(store, now=later())
    assert paths(store) == before


def test_ages_are_told_by_the_clock_of_the_store(moto_url, monkeypatch):
    """This machine's clock is four days ahead."""
    store = fill(moto_url)
    put(store, *LEFT)
    ahead = time.time() + 4 * DAY_S
    monkeypatch.setattr("time.time", lambda: ahead)
    assert collect_garbage(store).paths == ()


KILLED = """
import os, signal, sys, time
from pipeline.snapshot import garbage
from pipeline.snapshot.commit import SnapshotStore
from pipeline.storage import Storage

class Dying(Storage):
    left = int(sys.argv[2])
    def delete(self, path):
        if Dying.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        Dying.left -= 1
        super().delete(path)

garbage.DELETES_AT_ONCE = 1
garbage.collect_garbage(SnapshotStore(Dying("file", sys.argv[1])), now=time.time() + 360000)
"""


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 7])
def test_a_kill_between_any_two_deletes_leaves_all_snapshots_and_no_record_without_its_files(
    local_url, steps
):
    store = fill(local_url)
    put(store, *LEFT)
    expected = {n: difference(store.storage, None, store.load(n)) for n in store.numbers()}
    done = subprocess.run([sys.executable, "-c", KILLED, local_url, str(steps)], check=False)
    assert done.returncode == -signal.SIGKILL
    for number in store.numbers():
        assert difference(store.storage, None, store.load(number)) == expected[number]
    left = paths(store)
    if any(path.startswith("_runs/") for path in left):
        assert left.issuperset(LEFT[2:])
    collect_garbage(store, now=later())
    assert paths(store).isdisjoint(LEFT)
