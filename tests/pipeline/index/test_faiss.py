"""FAISS indexes: stored in any store, checked when they are read, built anew where they must be."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, CorruptFileError, UnsafeStoreError
from pipeline.hits import unit
from pipeline.index.kinds import open_index
from pipeline.index.versions import ORPHAN_HOURS, IndexVersions
from pipeline.snapshot.commit import SnapshotStore
from pipeline.storage import open_storage
from tests.pipeline.histories import Document, Night
from tests.pipeline.index.indexing import (
    commit,
    example_in_page,
    feed,
    found,
    ids_in,
    write_vectors,
)
from tests.pipeline.snapshots import DIM, rows

STORES = ["local", "memory", "moto", pytest.param("rgw", marks=pytest.mark.s3)]
# float16 keeps eleven bits of every element.
FLOAT16_TOLERANCE = 1e-3


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(open_storage(str(tmp_path / "vectors")))


def put(store: SnapshotStore, *ids: str, text: str = "one", deletes: tuple[str, ...] = ()) -> None:
    Night({id_: Document(text) for id_ in ids}, deletes, documents_per_file=50).commit(store)


def names(count: int, prefix: str = "doc") -> list[str]:
    return [f"{prefix}-{number}" for number in range(count)]


@pytest.mark.parametrize("kind", STORES)
def test_an_index_is_kept_in_any_store(store, kind, request):
    url = request.getfixturevalue(f"{kind}_url")
    put(store, "a", "b")
    feed(store, url)
    put(store, "c", deletes=("a",))
    assert feed(store, url).action == "delta"
    assert ids_in(url) == {"b", "c"}


def test_a_store_that_lets_every_create_win_is_refused(store, rclone_url):
    put(store, "a")
    with pytest.raises(UnsafeStoreError):
        feed(store, rclone_url)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_scores_are_the_cosines_of_the_stored_vectors(store, local_url, kind, dtype):
    put(store, *names(80))
    feed(store, local_url, faiss={"type": kind, "dtype": dtype, "num_probes": 9})
    stored = np.stack(rows(names(80), text="one/en").column("vector").to_numpy(False))
    query = np.arange(1.0, DIM + 1)
    cosines = unit(stored.astype(np.float64)) @ unit(query)
    best = {f"doc-{row}": cosines[row] for row in np.argsort(-cosines)[:7].tolist()}
    assert found(open_index(local_url), query, 7) == pytest.approx(best, abs=FLOAT16_TOLERANCE)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "ivf_pq"])
def test_a_rare_value_is_found_where_it_stands_far_from_the_query(store, local_url, kind):
    """A graph, or the lists nearest to the query, would not lead there."""
    near = np.random.default_rng(0).standard_normal((600, DIM)) + 5
    far = np.random.default_rng(1).standard_normal((3, DIM)) - 5
    files = [
        write_vectors(store.storage, names(600), near),
        write_vectors(store.storage, names(3, "far"), far, "de"),
    ]
    commit(store, files)
    feed(store, local_url, faiss={"type": kind, "num_probes": 1, "search_depth": 4})
    reader = open_index(local_url)
    assert set(found(reader, near[0], 10, lang="de")) == set(names(3, "far"))
    assert len(found(reader, near[0], 10)) == 10


def test_deleted_rows_of_a_graph_are_never_found_and_too_many_make_it_new(store, local_url):
    put(store, *names(100))
    feed(store, local_url, faiss={"type": "hnsw"})
    put(store, deletes=tuple(names(15)))
    assert feed(store, local_url, faiss={"type": "hnsw"}).action == "delta"
    assert ids_in(local_url) == set(names(100)) - set(names(15))
    put(store, deletes=tuple(names(25)))
    report = feed(store, local_url, faiss={"type": "hnsw"})
    assert report.action == "full"
    assert "25 of 100 rows of the graph are deleted, more than faiss.max_dead_share" in (
        report.reason
    )
    assert ids_in(local_url) == set(names(100)) - set(names(25))


def test_lists_that_were_made_for_far_fewer_rows_are_made_anew(store, local_url):
    put(store, *names(50))
    feed(store, local_url, faiss={"type": "ivf"})
    put(store, *names(140, "new"))
    assert feed(store, local_url, faiss={"type": "ivf"}).action == "delta"
    put(store, *names(20, "newer"))
    report = feed(store, local_url, faiss={"type": "ivf"})
    assert report.action == "full"
    assert "holds 210 rows and was trained for 50" in report.reason


@pytest.mark.parametrize("kind", ["ivf", "ivf_pq"])
def test_more_lists_than_rows_to_train_on_are_refused(store, local_url, kind):
    put(store, *names(300))
    with pytest.raises(ConfigError, match="faiss.num_lists: 301 lists .* found 300 .* fewer"):
        feed(store, local_url, faiss={"type": kind, "num_lists": 301})


def test_codes_come_once_there_are_rows_to_train_on(store, local_url):
    put(store, *names(100))
    feed(store, local_url, faiss={"type": "ivf_pq"})
    put(store, *names(200, "new"))
    report = feed(store, local_url, faiss={"type": "ivf_pq"})
    assert report.action == "full"
    assert feed(store, local_url, faiss={"type": "ivf_pq"}).action == "none"


def test_other_settings_build_it_anew_and_those_of_a_search_do_not(store, local_url):
    put(store, *names(60))
    feed(store, local_url, faiss={"type": "hnsw"})
    put(store, "x")
    report = feed(store, local_url, faiss={"type": "hnsw", "search_depth": 7})
    assert report.action == "delta"
    report = feed(store, local_url, faiss={"type": "flat"})
    assert report.action == "full"
    assert "other settings: type was hnsw, is flat" in report.reason


@pytest.mark.parametrize("name", ["vectors", "rows"])
def test_a_damaged_file_is_an_error_and_a_rebuild_mends_it(store, local_url, name):
    put(store, *names(60))
    feed(store, local_url)
    version = IndexVersions(open_storage(local_url)).latest()
    assert version is not None
    path = Path(local_url) / version.files[name].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match="as SHA-256"):
        open_index(local_url)
    put(store, "x")
    with pytest.raises(CorruptFileError):
        feed(store, local_url)
    assert feed(store, local_url, rebuild=True).is_published
    assert len(ids_in(local_url)) == 61


def test_a_damaged_record_is_an_error(store, local_url):
    put(store, "a")
    feed(store, local_url)
    (Path(local_url) / "_versions/00000001.json").write_text('{"number": 1}')
    with pytest.raises(CorruptFileError, match="not the record of an index"):
        open_index(local_url)


def test_old_versions_and_what_killed_feeders_left_are_removed(store, local_url):
    orphan, recent = (Path(local_url) / "data" / f"{digit * 32}.faiss" for digit in "ab")
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"half")
    recent.write_bytes(b"of a feeder that is at work")
    old = time.time() - ORPHAN_HOURS * 3600 - 60
    os.utime(orphan, (old, old))
    for night in range(4):
        put(store, f"doc-{night}")
        feed(store, local_url)
    assert IndexVersions(open_storage(local_url)).numbers() == [3, 4]
    assert not orphan.exists()
    assert recent.exists()
    assert len(list((Path(local_url) / "data").iterdir())) == 2 * 2 + 1


def test_a_night_without_a_change_writes_a_record_alone(store, local_url):
    put(store, "a")
    feed(store, local_url)
    put(store)
    assert feed(store, local_url).action == "delta"
    first, second = (IndexVersions(open_storage(local_url)).load(number) for number in (1, 2))
    assert first.files == second.files
    assert second.state.snapshot == 2


def test_other_programs_read_it_as_the_page_says(store, tmp_path, monkeypatch):
    put(store, *names(5))
    feed(store, str(tmp_path / "index"))
    code = example_in_page("FAISS", "python")
    monkeypatch.chdir(tmp_path)
    names_of_page: dict[str, Any] = {}
    exec(code, names_of_page)
    labels, ids = (names_of_page["rows"][name].to_pylist() for name in ("_label", "id"))
    assert dict(zip(labels, ids, strict=True)) == dict(enumerate(names(5)))
    assert names_of_page["vectors"].ntotal == 5
