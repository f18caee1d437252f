"""Maintenance beside nightly runs: eight processes at once lose nothing, on every store."""

from collections.abc import Iterator

import pytest

from pipeline.errors import MissingFileError
from pipeline.maintenance import InTasks, compact
from pipeline.snapshot.changes import read_changes
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.compact import plan_merges
from pipeline.snapshot.expire import expire
from pipeline.snapshot.garbage import collect_garbage
from pipeline.snapshot.rollback import rollback
from pipeline.snapshot.tags import read_tags
from pipeline.storage import open_storage
from pipeline.verify import verify_snapshot
from tests.pipeline.histories import Document, Night, difference, places
from tests.pipeline.racers import keep_house, processes
from tests.pipeline.snapshots import rows

NUM_PROCESSES = 8


def every_pair(store: SnapshotStore) -> Iterator[tuple[int, int]]:
    numbers = store.numbers()
    for index, old in enumerate(numbers):
        for new in numbers[index:]:
            if set(range(old, new)) <= set(numbers):
                yield old, new


@pytest.mark.parametrize("kind", ["local", "moto", pytest.param("rgw", marks=pytest.mark.s3)])
def test_eight_processes_that_commit_and_keep_house_lose_nothing(kind, request):
    storage = open_storage(request.getfixturevalue(f"{kind}_url"))
    store = SnapshotStore(storage)
    base = {f"base-{number}": Document("base") for number in range(4)}
    Night(base, documents_per_file=2).commit(store)
    with processes(NUM_PROCESSES) as pool:
        put = list(pool.map(keep_house, [storage] * NUM_PROCESSES, range(NUM_PROCESSES)))
    latest = store.latest()
    assert latest is not None
    expected = dict.fromkeys(base, "base")
    expected |= dict(item.split(" ") for items in put for item in items)
    assert any(store.load(number).operation == "compact" for number in store.numbers())
    found = places(storage, latest)
    assert found.keys() == expected.keys()
    for id_, text in expected.items():
        content_hash = rows([id_], text=f"{text}/en").column("content_hash")[0].as_py()
        assert found[id_].content_hash == content_hash
    report = verify_snapshot(storage, latest)
    assert (report.problems, report.feed_missing) == ((), None)
    unbroken = [old for old, new in every_pair(store) if new == latest.number]
    assert len(unbroken) >= 4
    for old in unbroken[::3]:
        composed = {
            row["id"]: (row["op"], row["file"])
            for table in read_changes(store, old, latest.number)
            for row in table.to_pylist()
        }
        assert composed == difference(storage, store.load(old), latest)
    for tag in read_tags(storage):
        assert store.load(tag.number).number == tag.number


def fragmented(url: str) -> SnapshotStore:
    store = SnapshotStore(open_storage(url))
    for index in range(6):
        Night({f"doc-{index}": Document("one", ["en", "de"][index % 2])}).commit(store)
    return store


def test_merges_run_as_tasks_where_there_is_a_cluster(local_url, ray_cluster):
    store = fragmented(local_url)
    made = compact(store, below_bytes=1 << 20)
    assert made is not None
    assert len(made.files) == 2
    assert difference(store.storage, store.load(6), made) == {}
    assert verify_snapshot(store.storage, made).is_good
    assert compact(store, below_bytes=1 << 20) is None


def test_an_error_comes_out_of_a_task_as_what_it_is(local_url, ray_cluster):
    store = fragmented(local_url)
    merges = plan_merges(store.load(6), 1 << 20)
    store.storage.delete(merges[0].files[0].path)
    with pytest.raises(MissingFileError):
        InTasks(store.storage)(merges)
    assert store.numbers() == (1, 2, 3, 4, 5, 6)


def test_thirty_nights_with_a_house_in_order_stay_small(local_url):
    """Few files, the same documents, feeds unbroken."""
    store = SnapshotStore(open_storage(local_url))
    for number in range(30):
        Night(
            {f"doc-{number}": Document("one"), f"doc-{number // 2}": Document(f"{number}")},
            [f"doc-{number // 3}"] if number % 5 == 4 else [],
        ).commit(store)
    before = places(store.storage, store.latest())
    compact(store, below_bytes=1 << 20)
    rollback(store, 20)
    rollback(store, 30)
    expire(store, keep=3)
    report = collect_garbage(store, older_than_hours=0, force=True, now=4e9)
    assert report.num_by_kind["data file"] > 20
    latest = store.latest()
    assert latest is not None
    after = places(store.storage, latest)
    assert {id_: place.content_hash for id_, place in before.items()} == {
        id_: place.content_hash for id_, place in after.items()
    }
    for old, new in every_pair(store):
        composed = [table.to_pylist() for table in read_changes(store, old, new)]
        found = {row["id"]: (row["op"], row["file"]) for table in composed for row in table}
        assert found == difference(store.storage, store.load(old), store.load(new))
    assert verify_snapshot(store.storage, latest).orphans == ()
