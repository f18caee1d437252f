"""Which files a replay reads, and what it says became of the rejected rows."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import EmbedConfig, build
from pipeline.errors import ConfigError
from pipeline.records import RejectedRow
from pipeline.rejected import write_rejected
from pipeline.replay import (
    Fates,
    RejectedRun,
    ReplayPlan,
    fates,
    lenient,
    plan_replay,
    rejected_run,
)
from pipeline.snapshot.changes import CHANGE_SCHEMA, write_changes
from pipeline.snapshot.commit import SnapshotStore
from pipeline.storage import open_storage
from tests.pipeline.snapshots import snapshot as make_snapshot


def rejected(source, code="bad_json", offset=0, row_id=None, kept=None):
    return RejectedRow(source, offset, row_id, "parse", code, "why", None, kept)


def config(tmp_path, **names):
    (tmp_path / "corpus").mkdir(exist_ok=True)
    for name in names:
        (tmp_path / f"corpus/{name}.jsonl").write_text('{"text": "a"}\n')
    values = {
        "source": {"path": str(tmp_path / "corpus")},
        "model": {"directory": "none"},
        "output": {"path": str(tmp_path / "vectors")},
        "run": {"max_rejected": 3, "max_rejected_share": 0.5},
    }
    return build(EmbedConfig, values, "test")


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "vectors"))


def plan(storage, settings, *rows):
    path = write_rejected(storage, "night-1", rows)
    return plan_replay(storage, RejectedRun("night-1", (path,)), settings)


def test_a_replay_reads_the_files_of_the_rejected_rows_and_no_others(tmp_path, storage):
    settings = config(tmp_path, a=1, b=1, c=1, d=1)
    at = f"{tmp_path}/corpus/"
    found = plan(
        storage,
        settings,
        rejected(f"{at}a.jsonl"),
        rejected(f"{at}a.jsonl", offset=20),
        rejected(f"{at}c.jsonl", "corrupt_file", None),
        rejected(f"{at}gone.jsonl", "empty_text"),
        rejected(f"{at}d.jsonl", "duplicate_text", kept=f"{at}b.jsonl"),
    )
    assert found.files == {f"{at}a.jsonl", f"{at}c.jsonl"}
    assert found.gone == {f"{at}gone.jsonl"}
    assert found.by_code == {"bad_json": 2, "corrupt_file": 1, "empty_text": 1}
    assert found.num_rows == 4


def test_a_duplicate_is_read_together_with_the_row_that_is_kept(tmp_path, storage):
    settings = config(tmp_path, a=1, b=1, c=1, d=1)
    at = f"{tmp_path}/corpus/"
    found = plan(
        storage,
        settings,
        rejected(f"{at}d.jsonl", "duplicate_id", kept=f"{at}c.jsonl"),
        rejected(f"{at}c.jsonl", "duplicate_id", offset=9, kept=f"{at}a.jsonl"),
    )
    assert found.files == {f"{at}a.jsonl", f"{at}c.jsonl", f"{at}d.jsonl"}


def test_files_of_rejected_rows_that_were_written_without_the_newer_columns_are_read(
    tmp_path, storage
):
    settings = config(tmp_path, a=1)
    old = pa.Table.from_pylist([vars(rejected(f"{tmp_path}/corpus/a.jsonl"))])
    (tmp_path / "vectors/_rejected/x").mkdir(parents=True)
    old = old.drop_columns(["excerpt", "kept_source"])
    pq.write_table(old, tmp_path / "vectors/_rejected/x/1.parquet")
    run = RejectedRun("x", ("_rejected/x/1.parquet",))
    assert plan_replay(storage, run, settings).num_rows == 1


def test_the_limits_of_a_whole_corpus_do_not_hold_for_a_replay(tmp_path):
    run = lenient(config(tmp_path)).run
    assert (run.max_rejected, run.max_rejected_share) == (None, 1.0)
    assert run.max_deleted_share == config(tmp_path).run.max_deleted_share


def snapshot_with_feed(storage, *changes):
    table = pa.Table.from_pylist(
        [{"id": name, "op": op, "file": None} for name, op in changes], schema=CHANGE_SCHEMA
    )
    return make_snapshot(changes=(write_changes(storage, 1, "run", table),))


def test_every_rejected_row_has_one_fate(storage):
    before = [
        rejected("a", "empty_text", 0, "mended"),
        rejected("a", "empty_text", 9, "still"),
        rejected("a", "empty_text", 20, "removed"),
        rejected("a", "bad_json", 30),
        rejected("a", "bad_json", 40),
        rejected("b", "corrupt_file", None),
        rejected("c", "truncated_file", None),
        rejected("lost", "bad_json", 0, "x"),
        rejected("lost", "corrupt_file", None),
        rejected("a", "duplicate_text", 50, "x"),
    ]
    after = [
        rejected("a", "empty_text", 8, "still"),
        rejected("a", "bad_json", 25),
        rejected("c", "corrupt_file", None),
        rejected("b", "empty_text", 0, "inside b"),
    ]
    run = RejectedRun("night-1", tuple(write_rejected(storage, "night-1", [row]) for row in before))
    tried = ReplayPlan(run, {}, frozenset("abc"), frozenset({"lost"}))
    feed = snapshot_with_feed(
        storage, ("mended", "add"), ("line", "add"), ("of b", "update"), ("removed", "delete")
    )
    found = fates(storage, tried, [write_rejected(storage, "replay", after)], feed)
    assert found == Fates(embedded=3, still_rejected=3, gone=3)
    assert "of 9 rejected rows, 3 are embedded now, 3 are still rejected, 3 are no" in (
        found.describe()
    )


def test_a_replay_that_committed_nothing_mended_nothing(storage):
    before = [rejected("a", offset=number) for number in range(5)]
    run = RejectedRun("night-1", (write_rejected(storage, "night-1", before),))
    tried = ReplayPlan(run, {}, frozenset("a"), frozenset())
    again = write_rejected(storage, "replay", before)
    assert fates(storage, tried, [again], None) == Fates(0, 5, 0)
    assert fates(storage, tried, [], None) == Fates(0, 0, 5)


def test_the_last_run_that_read_the_corpus_is_replayed(storage):
    store = SnapshotStore(storage)
    with pytest.raises(ConfigError, match="no snapshot that rejected rows could be added to"):
        rejected_run(store)
    path = write_rejected(storage, "night-1", [rejected("a")])
    store.commit(make_snapshot(number=1, run_id="night-1", rejected_files=(path,)))
    store.commit(make_snapshot(number=2, parent=1, run_id="small", operation="compact"))
    assert rejected_run(store) == RejectedRun("night-1", (path,))
    other = write_rejected(storage, "night-2", [rejected("b")])
    assert rejected_run(store, "night-2") == RejectedRun("night-2", (other,))
    with pytest.raises(ConfigError, match=r"run 'night-3'; found: night-1, night-2"):
        rejected_run(store, "night-3")


@pytest.mark.parametrize("name", ["../data", "", "a/b", ".", "x" * 999 + "\0"])
def test_what_is_no_id_of_a_run_is_refused(storage, name):
    store = SnapshotStore(storage)
    store.commit(make_snapshot(number=1, run_id="night-1"))
    with pytest.raises(ConfigError, match="not the id of a run"):
        rejected_run(store, name)
