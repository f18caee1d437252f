"""Differences between snapshots, found by id and content hash."""

import pytest

from pipeline.snapshot.compare import IdSet, compare_snapshots
from pipeline.snapshot.metadata import Snapshot
from pipeline.storage import Storage, open_storage
from tests.pipeline.snapshots import snapshot, table_schema, write_file


@pytest.fixture
def storage(local_url: str) -> Storage:
    return open_storage(local_url)


@pytest.fixture
def two(storage: Storage) -> tuple[Snapshot, Snapshot]:
    """The second adds e and f, changes c, deletes b and d, and keeps a, x and y."""
    kept = write_file(storage, ["x", "y"])
    old = snapshot([kept, write_file(storage, ["a", "a", "b", "c", "c"]), write_file(storage, "d")])
    new_files = [kept, write_file(storage, ["a", "a"]), write_file(storage, "c", text="edited")]
    new_files.append(write_file(storage, ["f", "e", "e"]))
    return old, snapshot(new_files).numbered(old)


def test_documents_are_compared_by_id_and_hash(storage, two):
    diff = compare_snapshots(storage, *two)
    assert diff.added == IdSet(2, ("e", "f"))
    assert diff.changed == IdSet(1, ("c",))
    assert diff.deleted == IdSet(2, ("b", "d"))
    assert diff.num_unchanged == 3
    assert (len(diff.added_files), len(diff.removed_files)) == (3, 2)
    assert diff.same_fingerprint
    assert diff.same_schema


def test_the_other_direction_is_the_reverse(storage, two):
    old, new = two
    diff = compare_snapshots(storage, new, old)
    assert (diff.added.count, diff.changed.count, diff.deleted.count) == (2, 1, 2)
    assert diff.added.first_ids == ("b", "d")


def test_files_in_common_are_not_read(storage, two):
    old, new = two
    storage.delete(old.files[0].path)
    assert compare_snapshots(storage, old, new).num_unchanged == 3
    assert compare_snapshots(storage, old, old).num_unchanged == old.num_documents


def test_only_so_many_ids_are_named(storage):
    old = snapshot([])
    new = snapshot([write_file(storage, [str(index) for index in range(9, -1, -1)])])
    assert compare_snapshots(storage, old, new, num_ids=3).added == IdSet(10, ("0", "1", "2"))
    assert compare_snapshots(storage, old, new, num_ids=0).added == IdSet(10, ())


def test_another_encoder_and_other_columns_are_said(storage):
    old, new = snapshot(), snapshot(fingerprint="e" * 64, schema=table_schema("float32"))
    diff = compare_snapshots(storage, old, new)
    assert not diff.same_fingerprint
    assert not diff.same_schema
