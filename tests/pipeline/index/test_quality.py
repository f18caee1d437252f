"""The bar before publishing: recall is what it says, and drift is noticed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.hits import Hit
from pipeline.index.config import QualitySection
from pipeline.index.feed import SnapshotRows
from pipeline.index.kinds import open_index
from pipeline.index.quality import Tables, measure
from pipeline.snapshot.commit import SnapshotStore
from pipeline.storage import open_storage
from tests.pipeline.histories import Document, Night
from tests.pipeline.index.indexing import commit, feed, write_vectors
from tests.pipeline.snapshots import DIM


@pytest.fixture
def store(memory_url) -> SnapshotStore:
    return SnapshotStore(open_storage(memory_url))


def random_vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIM))


def fill(store: SnapshotStore, vectors_ND, prefix: str = "row"):
    """A snapshot of these vectors in two files."""
    ids = [f"{prefix}-{number:04d}" for number in range(len(vectors_ND))]
    half = len(ids) // 2
    parts = (slice(0, half), slice(half, None))
    return commit(store, [write_vectors(store.storage, ids[p], vectors_ND[p]) for p in parts])


class Answers:
    """An index that answers what it was told to."""

    def __init__(self, state, hits):
        self.state, self._hits = state, hits

    def search(self, queries_QD, num_hits, where=None):
        return self._hits(queries_QD, num_hits)


def true_hits(vectors_ND, queries_QD, num_hits):
    unit_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    best = np.argsort(-(queries_QD @ unit_ND.T), axis=1)[:, :num_hits]
    return [[Hit(0.0, f"row-{row:04d}", {}, "") for row in rows] for rows in best.tolist()]


@pytest.mark.parametrize("num_wrong", [0, 3, 10])
def test_recall_is_the_share_of_the_true_nearest_rows(store, num_wrong):
    vectors = random_vectors(200)
    rows = SnapshotRows(store.storage, fill(store, vectors), None)

    def hits(queries_QD, num_hits):
        far = true_hits(-vectors, queries_QD, num_wrong)
        right = true_hits(vectors, queries_QD, num_hits - num_wrong)
        return [a + b for a, b in zip(right, far, strict=True)]

    quality = measure(Tables(rows, None), Answers(None, hits), None, QualitySection(sample=20))
    assert quality.num_queries == 20
    assert quality.recall == pytest.approx(1 - num_wrong / 10)
    assert bool(quality.problems) is (num_wrong > 1)


def test_an_answer_as_near_as_the_true_one_is_right(store):
    """Of many equal documents, ten are asked for: any ten will do."""
    vectors = np.repeat(random_vectors(4), 25, axis=0)
    rows = SnapshotRows(store.storage, fill(store, vectors), None)

    def hits(queries_QD, num_hits):
        return [found[-num_hits:] for found in true_hits(vectors, queries_QD, 25)]

    section = QualitySection(sample=20)
    assert measure(Tables(rows, None), Answers(None, hits), None, section).recall == 1


def test_a_row_that_is_no_longer_in_the_snapshot_is_no_answer(store):
    vectors = random_vectors(50)
    rows = SnapshotRows(store.storage, fill(store, vectors), None)

    def hits(queries_QD, num_hits):
        found = true_hits(vectors, queries_QD, num_hits)
        return [[replace(hits[0], id="gone"), *hits[1:]] for hits in found]

    section = QualitySection(sample=10)
    assert measure(Tables(rows, None), Answers(None, hits), None, section).recall == pytest.approx(
        0.9
    )


def test_moved_neighbours_are_counted_against_the_published_snapshot(store):
    """One of the two files is replaced: half of all neighbours are others."""
    vectors = random_vectors(400)
    first = fill(store, vectors)
    other = [f"new-{number:04d}" for number in range(200)]
    new_file = write_vectors(store.storage, other, random_vectors(200, seed=7))
    second = commit(store, [first.files[0], new_file])
    before, after = (SnapshotRows(store.storage, made, None) for made in (first, second))
    quality = measure(
        Tables(after, before), None, None, QualitySection(sample=50, max_moved_share=0.3)
    )
    assert quality.recall is None
    assert quality.moved_share == pytest.approx(0.5, abs=0.1)
    assert "of the nearest rows are others" in quality.problems[0]
    same = measure(Tables(before, before), None, None, QualitySection(sample=50))
    assert (same.moved_share, same.problems) == (0, ())


def test_an_index_that_finds_too_little_is_not_published(store, local_url):
    fill(store, random_vectors(1000))
    options = {"faiss": {"type": "ivf", "num_lists": 100, "num_probes": 1}}
    report = feed(store, local_url, quality={"min_recall": 0.9}, **options)
    assert report.is_published is False
    assert report.quality.recall < 0.9
    assert "quality.min_recall is 0.9" in report.quality.problems[0]
    assert not open_storage(local_url).list_files()
    options["faiss"]["num_probes"] = 100
    assert feed(store, local_url, quality={"min_recall": 0.9}, **options).is_published


def test_a_snapshot_that_drifted_leaves_the_published_index_as_it_was(store, local_url):
    puts = {f"doc-{number}": Document("one") for number in range(60)}
    Night(puts, documents_per_file=30).commit(store)
    bar = {"max_moved_share": 0.5, "min_recall": 0.9}
    assert feed(store, local_url, quality=bar).is_published
    Night({id_: Document("two") for id_ in puts}, documents_per_file=30).commit(store)
    report = feed(store, local_url, quality=bar)
    assert (report.action, report.is_published) == ("delta", False)
    assert report.quality.moved_share > 0.5
    assert open_index(local_url).state.snapshot == 1
    assert feed(store, local_url, quality={"max_moved_share": None}).is_published


def test_new_vectors_of_another_length_are_a_problem(store, local_url):
    first = fill(store, random_vectors(200))
    feed(store, local_url)
    ids = [f"new-{number}" for number in range(40)]
    long_file = write_vectors(store.storage, ids, 3 * random_vectors(40, seed=3))
    changes = [{"id": id_, "op": "add", "file": long_file.path} for id_ in ids]
    commit(store, [*first.files, long_file], changes=changes_of(store, changes))
    report = feed(store, local_url)
    assert report.action == "delta"
    assert report.quality.norm_change == pytest.approx(2, abs=0.4)
    assert "the new vectors' mean length is" in report.quality.problems[0]
    assert open_index(local_url).state.snapshot == 1


def changes_of(store: SnapshotStore, rows: list[dict]) -> tuple[str, ...]:
    import pyarrow as pa

    from pipeline.snapshot.changes import CHANGE_SCHEMA, write_changes

    table = pa.Table.from_pylist(rows, schema=CHANGE_SCHEMA)
    return (write_changes(store.storage, 2, "run-x", table),)


def test_without_a_sample_nothing_is_measured_and_that_is_said(store, local_url):
    fill(store, random_vectors(20))
    report = feed(store, local_url, quality={"sample": 0, "min_recall": 1.0})
    assert report.is_published
    assert report.quality.notes == (
        "recall, moved neighbours and the new vectors' length were not measured: "
        "quality.sample is 0",
    )


def test_an_empty_snapshot_does_not_empty_the_index_unless_any_drift_may_be_published(
    store, local_url
):
    fill(store, random_vectors(20))
    feed(store, local_url)
    commit(store, [])
    report = feed(store, local_url, quality={"max_moved_share": 0.5})
    assert report.is_published is False
    assert "the snapshot is empty, the published one has 20 rows" in report.quality.problems[0]
    assert open_index(local_url).state.num_rows == 20
    assert feed(store, local_url).is_published
    assert open_index(local_url).state.num_rows == 0
