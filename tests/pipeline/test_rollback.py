"""Rolling back: the old state is current again, and feeds lead across it."""

import pytest

from pipeline.errors import CommitConflictError, ConfigError
from pipeline.snapshot.changes import read_changes
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.compact import compact
from pipeline.snapshot.expire import expire
from pipeline.snapshot.metadata import Snapshot
from pipeline.snapshot.rollback import rollback
from pipeline.snapshot.tags import expiring, read_tags
from pipeline.storage import Storage, open_storage
from pipeline.verify import verify_snapshot
from tests.pipeline.histories import Document, Night, difference
from tests.pipeline.snapshots import table_schema

STORES = ["local", "memory", "moto", pytest.param("rgw", marks=pytest.mark.s3)]
EQUAL = ("files", "fingerprint", "schema", "config", "encoder", "idempotency_key")
EQUAL += ("partition_columns", "rejected_files")


def fill(url: str) -> SnapshotStore:
    store = SnapshotStore(open_storage(url))
    Night({name: Document("one") for name in "abcd"}).commit(store)
    Night({"a": Document("two"), "e": Document("one", "de")}, ["b"]).commit(store)
    return store


@pytest.fixture
def store(local_url: str) -> SnapshotStore:
    return fill(local_url)


def feed(store, old, new):
    return {
        row["id"]: (row["op"], row["file"])
        for table in read_changes(store, old, new)
        for row in table.to_pylist()
    }


@pytest.mark.parametrize("kind", STORES)
def test_the_new_snapshot_equals_the_old_one(kind, request):
    store = fill(request.getfixturevalue(f"{kind}_url"))
    planned = rollback(store, 1, dry_run=True)
    assert store.numbers() == (1, 2)
    report = rollback(store, 1)
    made, target = store.load(3), store.load(1)
    assert report.snapshot == made == store.latest()
    for name in EQUAL:
        assert getattr(made, name) == getattr(target, name), name
    assert (made.operation, made.parent, made.lineage["rollback_to"]) == ("rollback", 2, 1)
    assert made.run_id != target.run_id
    counts = (report.num_added, report.num_changed, report.num_deleted, report.num_unchanged)
    assert counts == (1, 1, 1, 2)
    assert counts == tuple(made.counts[k] for k in ("added", "changed", "deleted", "unchanged"))
    assert (planned.snapshot, planned.num_changed, planned.num_deleted) == (None, 1, 1)
    found = feed(store, 2, 3)
    assert found == difference(store.storage, store.load(2), made)
    assert {id_: op for id_, (op, _) in found.items()} == {"a": "update", "b": "add", "e": "delete"}
    assert feed(store, 1, 3) == {}
    assert verify_snapshot(store.storage, made).is_good
    assert read_tags(store.storage) == ()


def test_the_way_back_from_the_way_back(store):
    rollback(store, 1)
    rollback(store, 2)
    assert store.load(4).files == store.load(2).files
    assert feed(store, 2, 4) == {}
    assert feed(store, 1, 4) == difference(store.storage, store.load(1), store.load(4))


def test_the_current_state_needs_no_rollback(store):
    assert rollback(store, 2).snapshot is None
    rollback(store, 1)
    report = rollback(store, 1)
    assert (report.snapshot, report.parent, report.num_unchanged) == (None, 3, 4)
    assert store.numbers() == (1, 2, 3)


def test_another_encoder_and_back_changes_all_documents(store):
    Night(fingerprint="e" * 64).commit(store)
    report = rollback(store, 2)
    assert (report.num_changed, report.num_unchanged) == (4, 0)
    assert feed(store, 3, 4) == difference(store.storage, store.load(3), store.load(4))
    assert feed(store, 2, 4) == {}


def test_across_a_compaction_documents_are_found_in_the_files_they_came_from(store):
    compact(store, below_bytes=1 << 20)
    made = rollback(store, 2).snapshot
    assert made is not None
    assert (made.counts["changed"], made.counts["unchanged"]) == (0, 4)
    assert feed(store, 3, 4) == {}
    assert len(made.moved) == 1
    assert feed(store, 1, 4) == difference(store.storage, store.load(1), made)


def test_a_snapshot_whose_files_are_gone_is_refused(store):
    path = store.load(1).files[0].path
    data = store.storage.read_bytes(path, 1 << 20)
    for damage in (lambda: store.storage.delete(path), lambda: store.storage.put(path, b"x")):
        damage()
        for dry_run in (True, False):
            with pytest.raises(ConfigError, match=r"1 of its 2 files are gone .*data/lang=en/"):
                rollback(store, 1, dry_run=dry_run)
    store.storage.put(path, data)
    assert store.numbers() == (1, 2)
    assert read_tags(store.storage) == ()


def test_there_must_be_such_a_snapshot(store):
    with pytest.raises(ConfigError, match="no snapshot 7"):
        rollback(store, 7)
    with pytest.raises(ConfigError, match="no snapshot 7"):
        rollback(store, 7, dry_run=True)


def test_many_documents_wait_on_the_disk(store):
    Night({f"doc-{n}": Document("one") for n in range(100)}, documents_per_file=30).commit(store)
    rollback(store, 2, max_rows=10)
    assert len(store.load(4).changes) > 3
    assert feed(store, 3, 4) == difference(store.storage, store.load(3), store.load(4))


class Arriving(Storage):
    """Something happens at the first create of a path that begins so."""

    def at(self, path: str, action) -> None:
        self._path, self._action = path, action

    def put_if_absent(self, path, data):
        if getattr(self, "_action", None) and path.startswith(self._path):
            action, self._action = self._action, None
            action()
        super().put_if_absent(path, data)


def test_a_nightly_that_commits_first_is_rolled_back_as_well(store):
    storage = Arriving("file", store.url)
    storage.at("_snapshots/", lambda: Night({"new": Document("one")}).commit(store))
    report = rollback(SnapshotStore(storage), 1)
    made = report.snapshot
    assert made is not None
    assert (made.number, report.parent, report.num_deleted) == (4, 3, 2)
    assert made.files == store.load(1).files
    assert feed(store, 3, 4) == difference(store.storage, store.load(3), made)


def test_an_expire_meanwhile_leaves_the_old_snapshot_alone(store):
    storage = Arriving("file", store.url)
    kept = []
    storage.at("_snapshots/", lambda: kept.append(expire(store, keep=1)))
    made = rollback(SnapshotStore(storage), 1).snapshot
    assert made is not None
    assert kept[0].tagged == (1,)
    assert store.numbers() == (1, 2, 3)


def test_a_snapshot_that_is_being_expired_is_refused(store):
    with expiring(store.storage, [1]), pytest.raises(CommitConflictError, match="being expired"):
        rollback(store, 1)
    assert store.numbers() == (1, 2)


def test_an_empty_snapshot_can_be_returned_to(local_url):
    store = SnapshotStore(open_storage(local_url))
    Night().commit(store)
    Night({"a": Document("one")}).commit(store)
    assert rollback(store, 1).num_deleted == 1
    latest: Snapshot | None = store.latest()
    assert latest is not None
    assert latest.files == ()
    assert latest.schema.equals(table_schema(partition_columns=("lang",)))
