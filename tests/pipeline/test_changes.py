"""Reading change feeds: from any snapshot to any later one, exactly the difference."""

import tempfile

import pyarrow as pa
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
from tests.pipeline.snapshots import snapshot

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
    steps=[("night", THREE, [], []), ("compact",), ("rollback", 0), ("night", {}, ["doc-2"], [])],
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
