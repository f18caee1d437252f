"""LanceDB indexes: what readers see is what a record pins, whatever is written to the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import (
    CommitConflictError,
    ConfigError,
    CorruptFileError,
    MissingFileError,
    UnsafeStoreError,
)
from pipeline.hits import unit
from pipeline.index import lance_table, lancedb_index
from pipeline.index.feed import FeedStep, SnapshotFeed
from pipeline.index.kinds import open_feeder, open_index
from pipeline.index.update import plan_update
from pipeline.index.versions import IndexVersions, Version
from pipeline.snapshot.commit import SnapshotStore
from pipeline.storage import open_storage
from tests.pipeline.histories import Document, Night
from tests.pipeline.index.indexing import (
    commit,
    config_of,
    example_in_page,
    feed,
    found,
    ids_in,
    write_vectors,
)
from tests.pipeline.snapshots import DIM, rows

KIND = {"index": {"kind": "lancedb"}}
# float16 keeps eleven bits of every element.
FLOAT16_TOLERANCE = 1e-3
# LanceDB rounds a query to the element type of the table.
ROUNDED_QUERY_TOLERANCE = 2e-3
TYPES = ["flat", "ivf_pq", "hnsw"]


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(open_storage(str(tmp_path / "vectors")))


def put(store: SnapshotStore, *ids: str, text: str = "one", deletes: tuple[str, ...] = ()) -> None:
    Night({id_: Document(text) for id_ in ids}, deletes, documents_per_file=900).commit(store)


def names(count: int, prefix: str = "doc") -> list[str]:
    return [f"{prefix}-{number}" for number in range(count)]


def published(url: str) -> Version:
    version = IndexVersions(open_storage(url)).latest()
    assert version is not None
    return version


def table_at(url: str) -> Any:
    """The table of the published version, as another program opens it: its newest version."""
    (path,) = published(url).directories
    return lancedb.connect(f"{url}/data").open_table(Path(path).stem)


def delta(store: SnapshotStore, url: str, **sections: Any) -> tuple[Any, SnapshotFeed]:
    """A feeder, and what it would be fed."""
    config = config_of(store, url, **{**KIND, **sections})
    feeder = open_feeder(config)
    plan = plan_update(config, feeder, rebuild=False)
    assert plan.action == "delta"
    return feeder, SnapshotFeed(plan.rows, feeder.settings, plan.held, plan.changes)


class Interrupted:
    """A feed in whose middle something happens: when rows are asked for."""

    def __init__(self, inner: SnapshotFeed, event: Callable[[], object]) -> None:
        self._inner = inner
        self._event = event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def steps(self) -> Iterator[FeedStep]:
        for step in self._inner.steps():
            yield FeedStep(step.gone_ids, lambda step=step: self._rows(step))

    def _rows(self, step: FeedStep) -> Iterator[pa.RecordBatch]:
        self._event()
        return step.rows()


@pytest.mark.parametrize("kind", ["local", "moto", pytest.param("rgw", marks=pytest.mark.s3)])
def test_an_index_is_kept_on_disk_and_in_s3(store, kind, request, monkeypatch):
    monkeypatch.setattr(lancedb_index, "MIN_STAY_S", 0)
    url = request.getfixturevalue(f"{kind}_url")
    # Searching by S3 twice as often says no more.
    options = {"index": {"kind": "lancedb", "keep_versions": 1}, "quality": {"sample": 0}}
    put(store, "a", "b")
    feed(store, url, **options)
    put(store, "c", deletes=("a",))
    assert feed(store, url, **options).action == "delta"
    assert ids_in(url) == {"b", "c"}
    feed(store, url, rebuild=True, **options)
    paths = [info.path for info in open_storage(url).list_files("data")]
    assert {"/".join(path.split("/")[:2]) for path in paths} == {*published(url).directories}


def test_lancedb_is_told_where_the_store_is_and_which_keys_were_given(moto_url, monkeypatch):
    keys = {"key": "some-key", "secret": "some-secret"}
    told = open_storage(moto_url, keys).object_store_options()
    assert told["aws_endpoint"].startswith("http://127.0.0.1:")
    assert (told["allow_http"], told["aws_secret_access_key"]) == ("true", "some-secret")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    # LanceDB finds AWS itself, and the region of a bucket, and keys in the environment.
    assert open_storage(moto_url).object_store_options() == {}
    assert open_storage("/tmp").object_store_options() == {}


def test_a_store_that_lancedb_does_not_open_is_refused(store, memory_url):
    put(store, "a")
    with pytest.raises(ConfigError, match="opens local directories, s3:// and gs://, found memory"):
        feed(store, memory_url, **KIND)


def test_a_store_that_lets_every_create_win_is_refused_and_nothing_stays(store, rclone_url):
    put(store, "a")
    with pytest.raises(UnsafeStoreError):
        feed(store, rclone_url, **KIND)
    assert open_storage(rclone_url).list_files("data") == []


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", TYPES)
def test_scores_are_the_cosines_of_the_stored_vectors(store, local_url, kind, dtype):
    put(store, *names(300))
    section = {"type": kind, "dtype": dtype, "refine_factor": 50}
    feed(store, local_url, lancedb=section, **KIND)
    stored = np.stack(rows(names(300), text="one/en").column("vector").to_numpy(False))
    query = np.arange(1.0, DIM + 1)
    cosines = unit(stored.astype(np.float64)) @ unit(query)
    best = {f"doc-{row}": cosines[row] for row in np.argsort(-cosines)[:7].tolist()}
    assert found(open_index(local_url), query, 7) == pytest.approx(best, abs=FLOAT16_TOLERANCE)


@pytest.mark.parametrize("kind", ["ivf_pq", "hnsw"])
def test_lists_find_what_is_near_also_among_rows_that_came_later(store, local_url, kind):
    section = {"type": kind, "max_loose_share": 0.3}
    bar = {"min_recall": 0.95}
    put(store, *names(600))
    built = feed(store, local_url, lancedb=section, quality=bar, **KIND)
    assert built.is_published, built.quality
    (index,) = table_at(local_url).list_indices()
    for night in range(3):
        put(store, *names(100, f"night-{night}"), deletes=(f"doc-{night}",))
        fed = feed(store, local_url, lancedb=section, quality=bar, **KIND)
        assert (fed.action, fed.is_published) == ("delta", True), fed.quality
    assert published(local_url).details["loose_rows"] == 0
    (later,) = table_at(local_url).list_indices()
    assert later.num_unindexed_rows == 0
    assert (later.index_type, later.name) == (index.index_type, index.name)


def test_lists_are_made_once_there_are_rows_to_train_on_and_anew_for_many_more(store, local_url):
    section = {"type": "ivf_pq", "max_growth": 1.5, "max_loose_share": 9}
    trained = []
    for night, count in enumerate((100, 200, 100, 100)):
        put(store, *names(count, f"night-{night}"))
        feed(store, local_url, lancedb=section, **KIND)
        trained.append(published(local_url).details["trained_rows"])
    assert trained == [0, 300, 300, 500]
    assert len(ids_in(local_url)) == 500


@pytest.mark.parametrize("kind", TYPES)
def test_a_rare_value_is_found_where_it_stands_far_from_the_query(store, local_url, kind):
    """A graph, or the lists nearest to the query, would not lead there."""
    near = np.random.default_rng(0).standard_normal((600, DIM)) + 5
    far = np.random.default_rng(1).standard_normal((6, DIM)) - 5
    files = [
        write_vectors(store.storage, names(600), near),
        write_vectors(store.storage, names(3, "far"), far[:3], "it's"),
        write_vectors(store.storage, names(3, "null"), far[3:], None),
    ]
    commit(store, files)
    section = {"type": kind, "num_probes": 1, "num_lists": 2, "search_depth": 4}
    feed(store, local_url, lancedb=section, **KIND)
    reader = open_index(local_url)
    assert set(found(reader, near[0], 10, lang="it's")) == set(names(3, "far"))
    assert set(found(reader, near[0], 10, lang=None)) == set(names(3, "null"))
    assert len(found(reader, near[0], 10, lang="en")) == 10
    assert len(found(reader, near[0], 606)) == 606


ODD_IDS = (
    *("it's", "''", "a\\b", "\\'", '"q"', "`tick`", "nul\0x", "new\nline", "%_", "-- no"),
    *("' OR 1=1 --", "😀", "é", "e\u0301", " ", "id IN ('a')"),
)


def test_documents_of_any_id_are_deleted_and_no_others(store, local_url):
    put(store, *ODD_IDS, "a", "b")
    feed(store, local_url, **KIND)
    for id_ in ODD_IDS:
        put(store, deletes=(id_,))
    assert feed(store, local_url, **KIND).action == "delta"
    assert ids_in(local_url) == {"a", "b"}


def test_more_documents_go_than_one_statement_names(store, local_url, monkeypatch):
    monkeypatch.setattr(lance_table, "DELETED_AT_ONCE", 7)
    put(store, *names(40))
    feed(store, local_url, **KIND)
    put(store, "x", deletes=tuple(names(30)))
    assert feed(store, local_url, **KIND).action == "delta"
    assert ids_in(local_url) == {"x", *(set(names(40)) - set(names(30)))}


def test_the_earlier_of_two_feeders_cannot_go_on_when_the_later_has_begun(store, local_url):
    put(store, *names(9))
    feed(store, local_url, **KIND)
    put(store, "x", "y", deletes=("doc-0",))
    feeder, inner = delta(store, local_url)
    other = Interrupted(inner, lambda: feed(store, local_url, **KIND))
    with (
        pytest.raises(CommitConflictError, match="another feeder is at work"),
        feeder.draft(other) as draft,
    ):
        draft.publish()
    assert ids_in(local_url) == {"x", "y", *names(9)} - {"doc-0"}
    assert published(local_url).number == 2


def test_of_two_feeders_in_turns_the_one_whose_version_is_pinned_wins(store, local_url):
    put(store, *names(9))
    feed(store, local_url, **KIND)
    put(store, "x", deletes=("doc-0",))
    (feeder, one), (_, other) = delta(store, local_url), delta(store, local_url)
    with feeder.draft(one) as first, feeder.draft(other) as second:
        second.publish()
        with pytest.raises(CommitConflictError, match="published version 2"):
            first.publish()
    assert ids_in(local_url) == {"x", *names(9)} - {"doc-0"}


def test_what_another_program_writes_is_never_published(store, local_url):
    put(store, *names(9))
    feed(store, local_url, **KIND)
    before = ids_in(local_url)
    table = table_at(local_url)
    foreign = table.to_arrow().slice(0, 1).set_column(0, "id", pa.array(["foreign"]))
    table.add(foreign)
    assert ids_in(local_url) == before
    put(store, "x")

    def write() -> None:
        table_at(local_url).add(foreign)

    feeder, inner = delta(store, local_url)
    with (
        pytest.raises(CommitConflictError, match="program wrote to this table meanwhile"),
        feeder.draft(Interrupted(inner, write)),
    ):
        pass
    assert ids_in(local_url) == before
    assert feed(store, local_url, **KIND).action == "delta"
    assert ids_in(local_url) == {"x", *before}


def test_what_an_unfinished_feeder_left_in_the_table_does_not_count(store, local_url):
    put(store, *names(9))
    feed(store, local_url, **KIND)
    put(store, "x", deletes=("doc-0",))
    feeder, inner = delta(store, local_url)
    with feeder.draft(inner):
        pass
    assert table_at(local_url).count_rows("id = 'doc-0'") == 0
    assert "doc-0" in ids_in(local_url)
    put(store, "doc-0", text="two")
    assert feed(store, local_url, **KIND).action == "delta"
    assert ids_in(local_url) == {"x", *names(9)}


def test_a_reader_sees_its_version_until_that_is_removed_and_then_is_told(
    store, local_url, monkeypatch
):
    put(store, *names(20))
    feed(store, local_url, **KIND)
    reader = open_index(local_url)
    put(store, *names(20), text="two")
    for _ in range(3):
        feed(store, local_url, rebuild=True, **KIND)
    assert set(found(reader, np.ones(DIM), 30)) == set(names(20))
    monkeypatch.setattr(lancedb_index, "MIN_STAY_S", 0)
    feed(store, local_url, rebuild=True, **KIND)
    with pytest.raises(MissingFileError, match="open the index again"):
        found(reader, np.ones(DIM), 30)
    assert IndexVersions(open_storage(local_url)).numbers() == [4, 5]
    assert len(list((Path(local_url) / "data").iterdir())) == 2


def test_compaction_removes_what_no_record_pins_and_keeps_what_one_does(
    store, local_url, monkeypatch
):
    monkeypatch.setattr(lancedb_index, "MIN_STAY_S", 0)
    # Far longer than it takes to compact this table.
    monkeypatch.setattr(lancedb_index, "ORPHAN_HOURS", 2 / 3600)
    options = {**KIND, "lancedb": {"max_loose_share": 9}}
    put(store, *names(50))
    for night in range(4):
        if night == 2:
            time.sleep(2.1)
        feed(store, local_url, **options)
        put(store, f"night-{night}")
    feed(store, local_url, **options)
    reader = open_index(local_url)
    before = {row["version"] for row in table_at(local_url).list_versions()}
    put(store, "last")
    feed(store, local_url, **{**KIND, "lancedb": {"max_loose_share": 0.01}})
    table = table_at(local_url)
    pinned = {v.details["table_version"] for v in kept_versions(local_url)}
    left = {row["version"] for row in table.list_versions()}
    assert pinned <= left
    assert len(left & before) < len(before)
    assert {tag["version"] for tag in table.tags.list().values()} == pinned
    assert table.stats()["fragment_stats"]["num_fragments"] == 1
    assert len(found(reader, np.ones(DIM), 99)) == 54
    assert len(ids_in(local_url)) == 55


def kept_versions(url: str) -> list[Version]:
    kept = IndexVersions(open_storage(url))
    return [kept.load(number) for number in kept.numbers()]


def test_another_programs_clean_up_leaves_what_records_pin(store, local_url):
    put(store, *names(20))
    feed(store, local_url, **KIND)
    put(store, "x")
    feed(store, local_url, **KIND)
    table = table_at(local_url)
    table.add(table.to_arrow().slice(0, 1))
    with suppress(RuntimeError):  # LanceDB says that tagged versions would go.
        table.optimize(cleanup_older_than=timedelta(milliseconds=1))
    assert ids_in(local_url) == {"x", *names(20)}


def test_a_night_without_a_change_writes_a_record_alone(store, local_url):
    put(store, "a")
    feed(store, local_url, **KIND)
    files = {info.path for info in open_storage(local_url).list_files("data")}
    put(store)
    assert feed(store, local_url, **KIND).action == "delta"
    first, second = kept_versions(local_url)
    assert (first.directories, first.details) == (second.directories, second.details)
    assert second.state.snapshot == 2
    new = {info.path for info in open_storage(local_url).list_files("data")} - files
    assert {Path(path).parent.name for path in new} == {"tags"}


def test_an_index_of_another_kind_is_built_anew_and_never_mixed(store, local_url, monkeypatch):
    monkeypatch.setattr(lancedb_index, "MIN_STAY_S", 0)
    put(store, *names(9))
    for options, was, is_ in (
        ({}, None, "faiss"),
        (KIND, "faiss", "lancedb"),
        ({}, "lancedb", "faiss"),
    ):
        report = feed(store, local_url, **options)
        assert report.action == "full"
        assert was is None or f"kind was {was}, is {is_}" in report.reason
        assert ids_in(local_url) == set(names(9))
    put(store, "x")
    assert feed(store, local_url).action == "delta"
    assert ids_in(local_url) == {"x", *names(9)}
    endings = {path.suffix for path in (Path(local_url) / "data").iterdir()}
    assert endings == {".faiss", ".parquet"}


def test_a_table_that_is_gone_is_an_error_and_a_rebuild_mends_it(store, local_url):
    put(store, *names(9))
    feed(store, local_url, **KIND)
    open_storage(local_url)
    IndexVersions(open_storage(local_url)).remove(published(local_url).directories[0])
    with pytest.raises(MissingFileError, match="build it anew with --rebuild"):
        open_index(local_url)
    put(store, "x")
    with pytest.raises(MissingFileError):
        feed(store, local_url, **KIND)
    assert feed(store, local_url, rebuild=True, **KIND).is_published
    assert len(ids_in(local_url)) == 10


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"directories": [', '"directories": "', "not the record of an index"),
        ("table_version", "table", "does not name a table and its version"),
        ('"loose_rows": 0', '"loose_rows": null', "does not name a table and its version"),
        ("data/", "../x/", "not under data/"),
        ('"kind": "lancedb"', '"kind": "annoy"', "'annoy' is here, which this version does not"),
    ],
)
def test_a_damaged_record_is_an_error(store, local_url, old, new, message):
    put(store, "a")
    feed(store, local_url, **KIND)
    path = Path(local_url) / "_versions/00000001.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises((CorruptFileError, ConfigError), match=message):
        open_index(local_url)


@pytest.mark.parametrize(
    ("section", "message"),
    [({"type": "ivf_pq", "code_bytes": 3}, "8 elements, which 3 does not divide")],
)
def test_settings_that_do_not_fit_the_vectors_are_refused(store, local_url, section, message):
    put(store, "a")
    with pytest.raises(ConfigError, match=message):
        feed(store, local_url, lancedb=section, **KIND)


def test_a_column_that_lance_cannot_hold_is_refused():
    schema = pa.schema(
        [("id", pa.string()), ("a.b", pa.string()), ("vector", pa.list_(pa.float32(), 4))]
    )
    with pytest.raises(ConfigError, match="found 'a.b'"):
        lance_table.LanceRows.create(open_storage("x"), "data/t.lance", schema, None)


def test_other_programs_read_it_as_the_page_says(store, tmp_path, monkeypatch):
    put(store, *names(15))
    feed(store, str(tmp_path / "index"), **KIND)
    put(store, "x", deletes=("doc-1",))
    feed(store, str(tmp_path / "index"), **KIND)
    monkeypatch.chdir(tmp_path)
    query = np.arange(1.0, DIM + 1)
    names_of_page: dict[str, Any] = {"query": query}
    exec(example_in_page("LanceDB", "python"), names_of_page)
    ours = found(open_index(str(tmp_path / "index")), query, 10)
    assert names_of_page["cosines"] == pytest.approx(ours, abs=ROUNDED_QUERY_TOLERANCE)
