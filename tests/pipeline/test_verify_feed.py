"""Verification of change feeds: good ones pass, and every kind of lie is found."""

import re
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.snapshot.changes import CHANGE_SCHEMA, MOVE_SCHEMA, write_changes, write_moves
from pipeline.snapshot.commit import SnapshotStore, manifest_path
from pipeline.snapshot.compact import compact
from pipeline.snapshot.rollback import rollback
from pipeline.storage import open_storage
from pipeline.verify import verify_snapshot
from pipeline.verify_feed import check_feed
from tests.pipeline.histories import Document, Night
from tests.pipeline.snapshots import snapshot, write_file


@pytest.fixture
def store(local_url: str) -> SnapshotStore:
    store = SnapshotStore(open_storage(local_url))
    Night({name: Document("one") for name in "abcd"}, documents_per_file=2).commit(store)
    Night({"a": Document("two"), "e": Document("one", "de")}, ["d"]).commit(store)
    return store


def test_what_the_writers_write_is_good(store):
    compact(store, below_bytes=1 << 20)
    rollback(store, 2)
    rollback(store, 1)
    Night(fingerprint="e" * 64).commit(store)
    Night({"x": Document("one")}, copies=[0]).commit(store)
    for number in store.numbers():
        made = store.load(number)
        for max_rows in (1_000_000, 1):
            check = check_feed(store.storage, made, max_rows=max_rows)
            assert (check.problems, check.missing) == ((), None)
        report = verify_snapshot(store.storage, made)
        assert report.is_good
        assert report.feed_missing is None


def feed_of(store, number=2):
    """The rows of a snapshot's feed, by id."""
    made = store.load(number)
    rows = []
    for path in made.changes:
        with store.storage.open_input(path) as file:
            rows += pq.read_table(file).to_pylist()
    return {row["id"]: row for row in rows}


def messages(store, made):
    check = check_feed(store.storage, made)
    assert check.missing is None
    return [problem.message for problem in check.problems]


def with_feed(store, rows):
    table = pa.Table.from_pylist(list(rows), schema=CHANGE_SCHEMA)
    path = write_changes(store.storage, 2, "test", table)
    return replace(store.load(2), changes=(path,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": None}, "1 documents differ and are not in the feed: 'a'"),
        ({"d": None}, "1 documents differ and are not in the feed: 'd'"),
        ({"e": {"op": "update"}}, "1 documents have another operation in the feed: 'e'"),
        ({"a": {"op": "add"}}, "1 documents have another operation in the feed: 'a'"),
        ({"z": {"op": "delete"}}, "1 documents have another operation in the feed: 'z'"),
        ({"c": {"op": "delete"}}, "1 documents have another operation in the feed: 'c'"),
        ({"a": {"file": "data/x.parquet"}}, "1 documents lie in another file .*: 'a'"),
        ({"d": {"file": "data/x.parquet"}}, "1 documents lie in another file .*: 'd'"),
        ({"e": {"file": None}}, "1 documents lie in another file .*: 'e'"),
    ],
)
def test_a_feed_that_says_otherwise_than_the_rows_is_found(store, change, message):
    rows = feed_of(store)
    for id_, values in change.items():
        if values is None:
            del rows[id_]
        else:
            rows[id_] = {"id": id_, "file": None, **rows.get(id_, {}), **values}
    (found,) = messages(store, with_feed(store, rows.values()))
    assert re.fullmatch(message, found)


def test_a_document_that_stands_twice_is_found(store):
    rows = feed_of(store)
    assert messages(store, with_feed(store, [*rows.values(), rows["a"]])) == [
        "1 documents stand twice in the feed: 'a'"
    ]


def test_a_copy_that_rewritten_does_not_tell_of_is_found(store):
    made = store.load(2)
    assert len(made.rewritten) == 2
    expected = "2 documents are unchanged and neither 'rewritten' nor 'moved' leads to their file"
    (found,) = messages(store, replace(made, rewritten={}))
    assert found.startswith(expected)
    moves = [
        {"id": "b", "file": made.rewritten[store.load(1).files[0].path]},
        {"id": "c", "file": made.rewritten[store.load(1).files[1].path]},
    ]
    table = pa.Table.from_pylist(moves, schema=MOVE_SCHEMA)
    moved = (write_moves(store.storage, 2, "test", table),)
    assert messages(store, replace(made, rewritten={}, moved=moved)) == []


def test_rewritten_must_lead_from_the_parent_to_this_one(store):
    made = store.load(2)
    kept = write_file(store.storage, ["k"])
    old = [*made.rewritten]
    for wrong, message in (
        ({"data/none.parquet": made.files[0].path}, "none of the snapshot before"),
        ({old[0]: "data/none.parquet"}, "is not in this snapshot"),
        ({old[0]: kept.path}, "is not in this snapshot"),
    ):
        found = messages(store, replace(made, rewritten={**made.rewritten, **wrong}))
        assert message in found[0]
    same = made.files[-1].path
    Night({"x": Document("one")}).commit(store)
    third = store.load(3)
    found = messages(store, replace(third, rewritten={same: same}))
    assert "still listed" in found[0]


def test_a_feed_that_cannot_be_read_is_a_problem(store):
    made = store.load(2)
    for path in made.changes:
        store.storage.delete(path)
    report = verify_snapshot(store.storage, made)
    assert [problem.code for problem in report.problems] == ["changes"]
    assert "is gone" in report.problems[0].message


def test_where_there_is_nothing_to_compare_it_says_so(store):
    made = store.load(2)
    assert check_feed(store.storage, replace(made, changes=None)).missing == "it recorded none"
    store.storage.delete(store.load(1).files[0].path)
    assert "a file of it or of the one before" in str(check_feed(store.storage, made).missing)
    store.storage.delete(manifest_path(1))
    report = verify_snapshot(store.storage, made)
    assert report.is_good
    assert "no snapshot 1" in str(report.feed_missing)


def test_an_old_snapshot_without_a_feed_is_good(local_url):
    storage = open_storage(local_url)
    made = SnapshotStore(storage).commit(snapshot([write_file(storage, ["a"])]))
    report = verify_snapshot(storage, made)
    assert report.is_good
    assert report.feed_missing == "it recorded none"
