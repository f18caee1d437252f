"""Reading change feeds: from any snapshot to any later one, exactly the difference."""

import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, CorruptFileError, MissingChangesError
from pipeline.snapshot.changes import CHANGE_SCHEMA, read_changes, write_changes
from pipeline.snapshot.commit import SnapshotStore, manifest_path
from pipeline.snapshot.compact import compact
from pipeline.snapshot.metadata import Snapshot
from pipeline.snapshot.rollback import rollback
from pipeline.storage import open_storage
from tests.pipeline.histories import Document, Night, difference
from tests.pipeline.snapshots import snapshot, write_file

STORES = ["local", "memory", "moto", pytest.param("rgw", marks=pytest.mark.s3)]
OTHER_FINGERPRINT = "e" * 64


@pytest.fixture
def store(local_url: str) -> SnapshotStore:
    return SnapshotStore(open_storage(local_url))


def composed(store, old, new, **options):
    """The composed feed: id -> operation and file."""
    tables = list(read_changes(store, old, new, **options))
    assert tables
    found = {}
    for table in tables:
        assert table.schema.equals(CHANGE_SCHEMA)
        for row in table.to_pylist():
            assert row["id"] not in found
            found[row["id"]] = (row["op"], row["file"])
    return found


def check_all(store: SnapshotStore, **options) -> None:
    """Every pair of snapshots: the composed feed is the difference of the rows."""
    made: list[Snapshot] = [store.load(number) for number in store.numbers()]
    for index, new in enumerate(made):
        assert composed(store, None, new.number) == difference(store.storage, None, new)
        for old in made[: index + 1]:
            expected = difference(store.storage, old, new)
            assert composed(store, old.number, new.number, **options) == expected


IDS = st.sampled_from([f"doc-{number}" for number in range(8)])
DOCUMENTS = st.builds(Document, st.sampled_from(["one", "two"]), st.sampled_from(["en", "de"]))
NIGHTS = st.builds(
    lambda puts, deletes, copies: ("night", puts, deletes, copies),
    st.dictionaries(IDS, DOCUMENTS, max_size=8),
    st.sets(IDS, max_size=4),
    st.sets(st.integers(0, 5), max_size=2),
)
STEPS = st.one_of(
    NIGHTS,
    NIGHTS,
    st.just(("compact",)),
    st.builds(lambda back: ("rollback", back), st.integers(0, 5)),
    st.just(("reembed",)),
)
THREE = {name: Document("one") for name in ("doc-1", "doc-2", "doc-3")}


def play(store: SnapshotStore, steps) -> None:
    """Carry out the steps; those that change nothing commit nothing."""
    for step in steps:
        match step:
            case ("night", puts, deletes, copies):
                # A run does not touch a document that is as it should be.
                parent = store.latest()
                night = Night(puts, deletes, copies=copies, documents_per_file=2)
                built = night.build(store, parent)
                changed = difference(store.storage, parent, built)
                night.puts = {id_: puts[id_] for id_ in puts if id_ in changed}
                night.commit(store)
            case ("compact",):
                if store.latest() is not None:
                    compact(store, below_bytes=1 << 20)
            case ("rollback", back):
                if len(store.numbers()) > 1:
                    rollback(store, store.numbers()[back % len(store.numbers())])
            case ("reembed",):
                latest = store.latest()
                if latest is not None:
                    other = FINGERPRINTS[latest.fingerprint]
                    Night(fingerprint=other).commit(store)


FINGERPRINTS = {"f" * 64: OTHER_FINGERPRINT, OTHER_FINGERPRINT: "f" * 64}


@settings(max_examples=40)
@given(steps=st.lists(STEPS, min_size=1, max_size=6), max_rows=st.sampled_from([1_000_000, 3]))
@example(  # compacted, and back across it: a file's documents go to several
    steps=[
        ("night", {"doc-0": Document("one")}, [], []),
        ("night", THREE, [], []),
        ("compact",),
        ("rollback", 1),
    ],
    max_rows=3,
)
@example(  # another encoder and back
    steps=[("night", THREE, [], []), ("reembed",), ("rollback", 0), ("reembed",), ("reembed",)],
    max_rows=3,
)
def test_feeds_composed_over_any_history_are_the_difference_of_the_rows(steps, max_rows):
    with tempfile.TemporaryDirectory() as directory:
        store = SnapshotStore(open_storage(directory))
        play(store, steps)
        check_all(store, max_rows=max_rows)


@pytest.mark.parametrize("kind", STORES)
def test_a_feed_is_read_from_any_store(kind, request):
    store = SnapshotStore(open_storage(request.getfixturevalue(f"{kind}_url")))
    play(store, [("night", THREE, [], []), ("night", {"doc-1": Document("two")}, ["doc-2"], [0])])
    rollback(store, 1)
    check_all(store)


def test_nothing_differs_between_a_snapshot_and_itself(store):
    Night(THREE).commit(store)
    assert composed(store, 1, 1) == {}


def test_there_is_no_way_back(store):
    Night(THREE).commit(store)
    Night(deletes=["doc-1"]).commit(store)
    for old, new in ((2, 1), (0, 1), (-1, 1)):
        with pytest.raises(ConfigError, match="no way from snapshot"):
            read_changes(store, old, new)
    with pytest.raises(ConfigError, match="no snapshot 9"):
        read_changes(store, 2, 9)
    with pytest.raises(ConfigError, match="no snapshot 9"):
        read_changes(store, None, 9)


def test_a_manifest_that_expired_in_between_is_a_gap(store):
    for number in range(4):
        Night({f"doc-{number}": Document("one")}).commit(store)
    store.storage.delete(manifest_path(2))
    with pytest.raises(
        MissingChangesError, match=r"from snapshot 1 to 4 has a gap: 2 .*as a whole"
    ):
        read_changes(store, 1, 4)
    # The snapshot that the reader has is not needed itself.
    assert sorted(composed(store, 2, 4)) == ["doc-2", "doc-3"]
    assert len(composed(store, None, 4)) == 4


def test_a_snapshot_without_a_feed_is_a_gap(store):
    Night(THREE).commit(store)
    store.commit(snapshot([write_file(store.storage, ["x"])]).numbered(store.latest()))
    with pytest.raises(MissingChangesError, match="snapshot 2 recorded no change feed"):
        read_changes(store, 1, 2)
    assert composed(store, None, 2).keys() == {"x"}


def test_a_feed_file_that_is_gone_is_a_gap(store):
    Night(THREE).commit(store)
    Night(deletes=["doc-1"]).commit(store)
    store.storage.delete(store.load(2).changes[0])
    with pytest.raises(MissingChangesError, match=r"changes/00000002/.* is gone"):
        composed(store, 1, 2)


def commit_feed(store, table=None, data=None, **values):
    """Commit a snapshot on the latest one whose only feed file is this."""
    parent = store.latest()
    path = write_changes(store.storage, parent.number + 1, "bad", table or empty())
    if data is not None:
        store.storage.put(path, data)
    made = snapshot(parent.files, changes=(path,), run_id="bad", **values)
    return store.commit(made.numbered(parent))


def empty():
    return CHANGE_SCHEMA.empty_table()


def changes_table(*rows):
    return pa.Table.from_pylist(
        [dict(zip(CHANGE_SCHEMA.names, row, strict=True)) for row in rows], schema=CHANGE_SCHEMA
    )


def test_a_damaged_feed_is_named(store):
    Night(THREE).commit(store)
    commit_feed(store, data=b"PAR1 and no more")
    with pytest.raises(CorruptFileError, match=r"changes/00000002/bad-.*cannot be decoded"):
        composed(store, 1, 2)


def test_a_flipped_bit_in_a_feed_is_found(store):
    Night(THREE).commit(store)
    table = changes_table(*((f"doc-{i:03d}", "delete", None) for i in range(1000)))
    made = commit_feed(store, table)
    data = bytearray(store.storage.read_bytes(made.changes[0], 1 << 20))
    data[len(data) // 3] ^= 1
    store.storage.put(made.changes[0], bytes(data))
    with pytest.raises(CorruptFileError):
        composed(store, 1, 2)


def test_a_feed_with_other_columns_is_refused(store, tmp_path):
    Night(THREE).commit(store)
    pq.write_table(pa.table({"id": [1], "op": ["add"]}), tmp_path / "x.parquet")
    commit_feed(store, data=(tmp_path / "x.parquet").read_bytes())
    with pytest.raises(
        CorruptFileError, match="column 'id' of string is expected, found id: int64"
    ):
        composed(store, 1, 2)


def test_an_unknown_operation_is_refused(store):
    Night(THREE).commit(store)
    commit_feed(store, changes_table(("x", "upsert", "data/x.parquet")))
    with pytest.raises(CorruptFileError, match="operation 'upsert'"):
        composed(store, 1, 2)


def test_a_feed_that_leads_to_a_file_of_no_snapshot_is_refused(store):
    Night(THREE).commit(store)
    commit_feed(store, changes_table(("x", "add", "data/lang=en/elsewhere.parquet")))
    with pytest.raises(CorruptFileError, match="document 'x' to a file that snapshot 2"):
        composed(store, 1, 2)


def test_a_feed_outside_of_the_directory_is_not_opened(store):
    Night(THREE).commit(store)
    parent = store.latest()
    hostile = snapshot(parent.files, changes=("../../x",), run_id="bad").numbered(parent)
    with pytest.raises(CorruptFileError, match=r"changes.0.*relative"):
        store.commit(hostile)
    store.storage.put_if_absent("_snapshots/00000002.json", hostile.to_json())
    with pytest.raises(CorruptFileError, match=r"changes.0.*relative"):
        composed(store, 1, 2)


def test_many_rows_wait_on_the_disk(store, monkeypatch, tmp_path):
    """With room for 10 rows in memory the answer is the same, and nothing is left behind."""
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    names = [f"doc-{number}" for number in range(200)]
    Night({name: Document("one") for name in names}, documents_per_file=50).commit(store)
    night = Night({name: Document("two") for name in names[:150]}, names[150:])
    night.documents_per_file = 40
    night.commit(store)
    Night({name: Document("one") for name in names[:20]}, documents_per_file=50).commit(store)
    check_all(store, max_rows=10)
    assert list(disk.iterdir()) == []
