"""What every kind of index does: it holds a snapshot, as a whole, and only what changed is fed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import (
    CommitConflictError,
    CompatibilityError,
    ConfigError,
    CorruptFileError,
    MissingFileError,
)
from pipeline.index.feed import SnapshotFeed, SnapshotRows
from pipeline.index.kinds import open_feeder, open_index
from pipeline.index.protocol import IndexReader
from pipeline.index.update import plan_update, update_index
from pipeline.snapshot.changes import read_changes
from pipeline.snapshot.commit import SnapshotStore, manifest_path
from pipeline.snapshot.compact import compact
from pipeline.storage import open_storage
from tests.pipeline.histories import Document, Night
from tests.pipeline.index.indexing import (
    HANGS_AFTER_SECONDS,
    commit,
    config_of,
    feed,
    found,
    ids_in,
    new_url,
    write_vectors,
)
from tests.pipeline.snapshots import DIM

QUERIES = np.random.default_rng(1).standard_normal((4, DIM))
# Stored as float16: scores of the same vectors are the same, those of float32 rounding apart.
SCORE_TOLERANCE = 1e-6

KINDS = ["flat", "hnsw", "ivf", "ivf_pq", "lancedb", "opensearch", "pgvector"]
# What does not depend on how vectors are stored.
ONE_OF_EACH = ["flat", "lancedb", "opensearch", "pgvector"]


def memory_store() -> SnapshotStore:
    return SnapshotStore(open_storage(f"memory://{uuid.uuid4().hex}"))


@pytest.fixture
def store() -> SnapshotStore:
    """Two nights: three documents, then one is changed, one deleted, one added."""
    store = memory_store()
    Night({"a": Document("one"), "b": Document("one", "de"), "c": Document("one")}).commit(store)
    Night({"b": Document("two", "de"), "d": Document("one")}, deletes=["c"]).commit(store)
    return store


def sections_of(kind: str) -> dict:
    """Looks at all lists, so that the answers of two trainings are the same."""
    if kind == "opensearch":
        return {"index": {"kind": kind, "keep_versions": 2}}
    if kind == "pgvector":
        return {"index": {"kind": kind}, "pgvector": {"search_depth": 1000}}
    if kind == "lancedb":
        return {"index": {"kind": kind}}
    return {"faiss": {"type": kind, "max_dead_share": 0.9, "num_probes": 1000}}


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_changed_is_fed_and_a_second_time_nothing(store, kind):
    options, url = sections_of(kind), new_url(kind)
    first = feed(store, url, snapshot={"number": 1}, **options)
    assert (first.action, first.num_rows_in, first.is_published) == ("full", 3, True)
    second = feed(store, url, **options)
    assert (second.action, second.held, second.snapshot) == ("delta", 1, 2)
    assert (second.num_documents_named, second.num_rows_in) == (3, 2)
    assert ids_in(url) == {"a", "b", "d"}
    again = feed(store, url, **options)
    assert (again.action, again.is_published) == ("none", False)
    assert open_index(url).state.snapshot == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_that_is_applied_twice_changes_nothing(store, kind):
    options, url = sections_of(kind), new_url(kind)
    feed(store, url, **options)
    before = [found(open_index(url), query, 3) for query in QUERIES]
    feeder = open_feeder(config_of(store, url, **options))
    rows = SnapshotRows(store.storage, store.load(2), None)
    repeated = SnapshotFeed(rows, feeder.settings, feeder.read_state(), read_changes(store, 1, 2))
    with feeder.draft(repeated) as draft:
        draft.publish()
    assert [found(open_index(url), query, 3) for query in QUERIES] == before


IDS = st.sampled_from([f"doc-{number}" for number in range(30)])
DOCUMENTS = st.builds(
    Document, st.sampled_from(["one", "two", "three"]), st.sampled_from(["en", "de"])
)
STEPS = st.one_of(
    st.tuples(
        st.just("night"),
        st.dictionaries(IDS, DOCUMENTS, max_size=20),
        st.sets(IDS, max_size=8),
        st.sets(st.integers(0, 5), max_size=2),
    ),
    st.just(("compact",)),
    st.just(("feed",)),
    st.just(("feed",)),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6)
@given(steps=st.lists(STEPS, min_size=1, max_size=8))
def test_after_any_history_the_fed_index_is_the_one_that_is_built_from_scratch(kind, steps):
    store, options = memory_store(), {**sections_of(kind), "quality": {"sample": 0}}
    url = new_url(kind)
    Night({f"doc-{i}": Document("zero") for i in range(20)}, documents_per_file=9).commit(store)
    feed(store, url, **options)
    for step in (*steps, ("feed",)):
        if step[0] == "night":
            Night(step[1], step[2], copies=step[3], documents_per_file=9).commit(store)
        elif step[0] == "compact":
            compact(store, below_bytes=1 << 20)
        else:
            feed(store, url, **options)
    scratch_url = new_url(kind)
    feed(store, scratch_url, **options)
    fed, scratch = open_index(url), open_index(scratch_url)
    assert fed.state == scratch.state
    assert ids_in(url) == ids_in(scratch_url)
    for query in QUERIES:
        for where in ({}, {"lang": "de"}):
            one, other = found(fed, query, 10, **where), found(scratch, query, 10, **where)
            assert one == pytest.approx(other, abs=SCORE_TOLERANCE)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_rows_of_a_partition_can_be_asked_for(store, kind):
    url = new_url(kind)
    feed(store, url, **sections_of(kind))
    reader = open_index(url)
    assert set(found(reader, QUERIES[0], 5, lang="de")) == {"b"}
    assert set(found(reader, QUERIES[0], 5, lang="en")) == {"a", "d"}
    assert found(reader, QUERIES[0], 5, lang="fr") == {}
    assert reader.search(QUERIES[:1], 1, {"lang": "de"})[0][0].columns == {"lang": "de"}
    with pytest.raises(ConfigError, match="no column 'day'; found: id, lang"):
        found(reader, QUERIES[0], 5, day="monday")


@pytest.mark.parametrize("kind", ["flat", "lancedb"])
def test_a_damaged_or_missing_file_of_the_snapshot_is_said(tmp_path, kind):
    store = SnapshotStore(open_storage(str(tmp_path)))
    url, options = new_url(kind), sections_of(kind)
    Night({"a": Document("one")}).commit(store)
    (file,) = store.load(1).files
    path = tmp_path / file.path
    content = path.read_bytes()
    path.write_bytes(content[:40] + bytes(len(content) - 40))
    with pytest.raises(CorruptFileError, match="'elmo verify' names it"):
        feed(store, url, **options)
    path.unlink()
    with pytest.raises(MissingFileError, match="a data file of snapshot 1 is gone"):
        feed(store, url, **options)
    assert not open_storage(url).list_files()


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_null_partition_can_be_asked_for(kind):
    store, url = memory_store(), new_url(kind)
    files = [
        write_vectors(store.storage, ["a"], np.ones((1, DIM)), None),
        write_vectors(store.storage, ["b"], np.ones((1, DIM)), "en"),
    ]
    commit(store, files)
    feed(store, url, **sections_of(kind))
    assert set(found(open_index(url), QUERIES[0], 5, lang=None)) == {"a"}


def test_a_gap_in_the_feed_leads_to_a_full_build_and_is_said(store, memory_url):
    feed(store, memory_url, snapshot={"number": 1})
    Night({"e": Document("one")}).commit(store)
    store.storage.delete(manifest_path(2))
    report = feed(store, memory_url)
    assert (report.action, report.snapshot, report.is_published) == ("full", 3, True)
    assert "the way from snapshot 1 to 3 has a gap" in report.reason
    assert ids_in(memory_url) == {"a", "b", "d", "e"}


def test_a_feed_whose_file_is_gone_leads_to_a_full_build(store, memory_url):
    feed(store, memory_url, snapshot={"number": 1})
    for path in store.load(2).changes or ():
        store.storage.delete(path)
    report = feed(store, memory_url)
    assert report.action == "full"
    assert "change feed is gone" in report.reason
    assert ids_in(memory_url) == {"a", "b", "d"}


def test_vectors_of_another_encoder_are_refused_unless_it_is_built_anew(store, memory_url):
    feed(store, memory_url)
    Night(fingerprint="e" * 64).commit(store)
    with pytest.raises(CompatibilityError, match="of encoder ffffffffffff, snapshot 3 has those"):
        feed(store, memory_url)
    assert open_index(memory_url).state.snapshot == 2
    report = feed(store, memory_url, rebuild=True)
    assert (report.action, report.is_published) == ("full", True)
    assert open_index(memory_url).state.fingerprint == "e" * 64


def test_the_snapshots_of_another_directory_are_refused(store, memory_url):
    feed(store, memory_url)
    other = memory_store()
    for _ in range(3):
        Night({"x": Document(uuid.uuid4().hex)}).commit(other)
    with pytest.raises(ConfigError, match="another history"):
        feed(other, memory_url)
    assert ids_in(memory_url) == {"a", "b", "d"}


def test_where_the_held_snapshot_has_expired_its_history_is_not_taken_on_trust(store, memory_url):
    """What follows the number that the index holds may be what another directory changed."""
    feed(store, memory_url)
    other = memory_store()
    for text in ("one", "two", "three"):
        Night({"x": Document(text), text: Document("one")}).commit(other)
    other.storage.delete(manifest_path(2))
    report = feed(other, memory_url)
    assert report.action == "full"
    assert report.reason == "snapshot 2 has expired, so its history cannot be checked"
    assert ids_in(memory_url) == {"x", "one", "two", "three"}


def test_a_rebuild_from_another_directory_is_not_compared_with_its_snapshots(store, memory_url):
    feed(store, memory_url)
    other = memory_store()
    for _ in range(3):
        Night({"x": Document(uuid.uuid4().hex)}).commit(other)
    report = feed(other, memory_url, rebuild=True)
    assert report.quality.moved_share is None
    assert "there is no earlier snapshot to compare" in report.quality.notes[0]


def test_an_older_snapshot_than_the_index_holds_needs_a_rebuild(store, memory_url):
    feed(store, memory_url)
    with pytest.raises(ConfigError, match="holds snapshot 2, which is later than 1"):
        feed(store, memory_url, snapshot={"number": 1})
    assert feed(store, memory_url, rebuild=True, snapshot={"number": 1}).is_published
    assert ids_in(memory_url) == {"a", "b", "c"}


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_an_empty_snapshot_gives_an_empty_index_that_can_be_fed(kind):
    store, url, options = memory_store(), new_url(kind), sections_of(kind)
    commit(store, [])
    feed(store, url, **options)
    assert ids_in(url) == set()
    Night({"a": Document("one")}).commit(store)
    report = feed(store, url, **options)
    assert report.is_published
    assert ids_in(url) == {"a"}


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_vectors_of_another_encoder_take_the_place_of_the_old_ones(store, kind):
    url, options = new_url(kind), sections_of(kind)
    feed(store, url, **options)
    Night(fingerprint="e" * 64).commit(store)
    assert feed(store, url, rebuild=True, **options).is_published
    assert open_index(url).state.fingerprint == "e" * 64
    assert ids_in(url) == {"a", "b", "d"}


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_of_two_feeders_at_once_one_publishes_and_the_other_is_told(store, kind):
    url, options = new_url(kind), sections_of(kind)
    feed(store, url, snapshot={"number": 1}, **options)
    config = config_of(store, url, **options)
    feeder = open_feeder(config)
    feeds = []
    for _ in range(2):
        plan = plan_update(config, feeder, rebuild=False)
        feeds.append(SnapshotFeed(plan.rows, feeder.settings, plan.held, plan.changes))

    def publish_second() -> None:
        with feeder.draft(feeds[1]) as second:
            first.publish()
            second.publish()

    with feeder.draft(feeds[0]) as first:
        with pytest.raises(CommitConflictError, match="another feeder"):
            publish_second()
        if open_index(url).state.snapshot == 1:  # The second was told before it began.
            first.publish()
    assert open_index(url).state.snapshot == 2
    assert ids_in(url) == {"a", "b", "d"}


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_plan_that_another_feeder_overtook_is_not_carried_out(store, kind):
    url, options = new_url(kind), sections_of(kind)
    feed(store, url, snapshot={"number": 1}, **options)
    config = config_of(store, url, **options)
    feeder = open_feeder(config)
    plan = plan_update(config, feeder, rebuild=False)
    Night({"e": Document("one")}).commit(store)
    feed(store, url, **options)
    with pytest.raises(CommitConflictError, match="now holds snapshot 3"):
        update_index(config, feeder, plan)
    assert ids_in(url) == {"a", "b", "d", "e"}


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_draft_that_is_not_published_leaves_the_index_as_it_was(store, kind):
    url, options = new_url(kind), sections_of(kind)
    feed(store, url, snapshot={"number": 1}, **options)
    config = config_of(store, url, **options)
    feeder = open_feeder(config)
    plan = plan_update(config, feeder, rebuild=False)
    fed = SnapshotFeed(plan.rows, feeder.settings, plan.held, plan.changes)
    with feeder.draft(fed) as draft:
        assert set(found(draft.reader(), QUERIES[0], 9)) == {"a", "b", "d"}
    assert ids_in(url) == {"a", "b", "c"}


NIGHT_ROWS = 40


def turnover(store: SnapshotStore, night: int) -> None:
    """A night after which nothing of the last one is left."""
    puts = {f"{night}-{row}": Document("text") for row in range(NIGHT_ROWS)}
    gone = [f"{night - 1}-{row}" for row in range(NIGHT_ROWS)]
    Night(puts, gone, documents_per_file=NIGHT_ROWS).commit(store)


def check_whole(reader: IndexReader) -> int:
    """What a reader sees is just one night; returns which."""
    ids = set(found(reader, np.ones(DIM), 2 * NIGHT_ROWS))
    assert ids == {f"{reader.state.snapshot}-{row}" for row in range(NIGHT_ROWS)}
    return reader.state.snapshot


@pytest.mark.parametrize("kind", KINDS)
def test_readers_see_the_old_or_the_new_index_and_never_a_half(local_url, tmp_path, kind):
    store = SnapshotStore(open_storage(local_url))
    options = sections_of(kind)
    # As few as there may be: what is open is in memory, or must be kept.
    options["index"] = {"keep_versions": 1, **options.get("index", {})}
    # In memory and in files, which go while they are being opened.
    url = new_url(kind) if kind in ONE_OF_EACH else str(tmp_path / "index")
    turnover(store, 1)
    feed(store, url, **options)
    seen: list[set[int]] = [set(), set()]
    failures: list[BaseException] = []
    is_done, has_read = threading.Event(), threading.Condition()

    def read(own: set[int]) -> None:
        before = open_index(url)
        while not is_done.is_set():
            try:
                reader = open_index(url)
                number = check_whole(reader)
                # What is open sees what it saw, whatever was published since.
                assert check_whole(before) == before.state.snapshot <= number
                before = reader
            except BaseException as error:
                with has_read:
                    failures.append(error)
                    has_read.notify_all()
                return
            with has_read:
                own.add(number)
                has_read.notify_all()

    def wait_for(night: int) -> None:
        with has_read:
            is_seen = has_read.wait_for(
                lambda: failures or all(night in own for own in seen), HANGS_AFTER_SECONDS
            )
        assert failures == []
        assert is_seen, f"a reader did not come to night {night}"

    readers = [threading.Thread(target=read, args=(own,), daemon=True) for own in seen]
    for reader in readers:
        reader.start()
    try:
        wait_for(1)
        # As a whole and by what changed in turns.
        for night in range(2, 9):
            turnover(store, night)
            feed(store, url, rebuild=bool(night % 2), **options)
            wait_for(night)
    finally:
        is_done.set()
        for reader in readers:
            reader.join(HANGS_AFTER_SECONDS)
    assert failures == []
    assert check_whole(open_index(url)) == 8


KILLED = """
import sys
from pipeline.snapshot.commit import SnapshotStore
from pipeline.storage import open_storage
from tests.pipeline.index.indexing import feed
from tests.pipeline.index.test_feeding import sections_of, turnover
store = SnapshotStore(open_storage(sys.argv[1]))
for night in range(2, 10_000):
    turnover(store, night)
    feed(store, sys.argv[2], **sections_of(sys.argv[3]))
    print(night, flush=True)
"""


@pytest.mark.parametrize("kind", ["flat", "lancedb"])
def test_a_feeder_that_is_killed_leaves_a_whole_index_that_can_be_fed_again(
    local_url, tmp_path, kind
):
    store = SnapshotStore(open_storage(local_url))
    url, options = str(tmp_path / "index"), sections_of(kind)
    turnover(store, 1)
    feed(store, url, **options)
    root = Path(__file__).parents[3]
    feeder = subprocess.Popen(
        [sys.executable, "-c", KILLED, local_url, url, kind],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert feeder.stdout is not None
    with feeder.stdout:
        for _ in range(3):
            assert feeder.stdout.readline()
        time.sleep(0.03)
        feeder.send_signal(signal.SIGKILL)
        feeder.wait()
    assert check_whole(open_index(url)) >= 4
    latest = store.latest_number()
    assert latest is not None
    feed(store, url, **options)
    assert check_whole(open_index(url)) == latest
