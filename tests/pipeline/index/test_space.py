"""An index in another space finds what an exact search there finds, before and after a delta."""

import uuid

import numpy as np
import pytest

from pipeline.errors import ConfigError, CorruptFileError
from pipeline.index.kinds import open_feeder, open_index
from pipeline.index.protocol import IndexState
from pipeline.index.query import nearest_in_index
from pipeline.projection import Projection
from pipeline.search import nearest
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.read import open_snapshot
from pipeline.storage import open_storage
from tests.pipeline.histories import Document, Night
from tests.pipeline.index.indexing import (
    commit,
    config_of,
    example_in_page,
    feed,
    ids_in,
    new_url,
    write_vectors,
)
from tests.pipeline.index.test_feeding import KINDS, ONE_OF_EACH, sections_of
from tests.pipeline.snapshots import DIM

NUM_ROWS = 300
QUERIES = np.random.default_rng(1).standard_normal((4, DIM)) + 3
# The matrix and the rows are kept in float16.
SCORE_TOLERANCE = 4e-3


@pytest.fixture
def store() -> SnapshotStore:
    """Rows with much in common and directions of very different spread."""
    store = SnapshotStore(open_storage(f"memory://{uuid.uuid4().hex}"))
    Night({f"doc-{n:03d}": Document(f"{n}") for n in range(NUM_ROWS)}).commit(store)
    random = np.random.default_rng(2)
    turned = np.linalg.qr(random.standard_normal((DIM, DIM)))[0]
    spread = np.geomspace(0.1, 3, DIM)
    vectors_ND = random.standard_normal((NUM_ROWS, DIM)) * spread @ turned + 5
    ids = [f"doc-{n:03d}" for n in range(NUM_ROWS)]
    commit(store, [write_vectors(store.storage, ids, vectors_ND)])
    return store


def scores(hits) -> dict[str, float]:
    return {hit.id: hit.score for hit in hits}


# OpenSearch has no room for the matrix of a white one.
@pytest.mark.parametrize(
    ("kind", "space"),
    [*((kind, "white") for kind in KINDS if kind != "opensearch"), ("opensearch", "centered")],
)
def test_an_index_finds_what_a_search_of_all_rows_finds_in_the_same_space(store, kind, space):
    url, options = new_url(kind), sections_of(kind)
    report = feed(store, url, snapshot={"space": space}, **options)
    assert report.quality is not None
    # The codes of ivf_pq are not exact.
    assert report.quality.recall == 1 or kind == "ivf_pq"
    _, dataset = open_snapshot(store.url)
    expected = nearest(dataset, QUERIES, 5, space=space)
    plain = nearest(dataset, QUERIES, 5, space="plain")
    found = nearest_in_index(open_index(url), QUERIES, 5, {}, [None] * 4)
    for wanted, other, hits in zip(expected, plain, found, strict=True):
        if kind != "ivf_pq":
            assert scores(hits) == pytest.approx(scores(wanted), abs=SCORE_TOLERANCE)
        assert set(scores(hits)) != set(scores(other))


@pytest.mark.parametrize("space", ["centered", "white"])
def test_other_programs_project_a_query_as_the_page_says(store, space):
    url = new_url("flat")
    feed(store, url, snapshot={"space": space})
    reader = open_index(url)
    names = {"state": reader.state.to_json(), "query": QUERIES[0].copy()}
    exec(example_in_page("The space", "python"), names)
    (theirs,) = reader.search(np.array(names["query"])[None], 5)
    (ours,) = nearest_in_index(reader, QUERIES[:1], 5, {}, [None])
    assert scores(theirs) == pytest.approx(scores(ours), abs=SCORE_TOLERANCE)


@pytest.mark.parametrize("kind", ["flat", "lancedb", "pgvector"])
def test_what_changes_goes_into_the_space_that_the_index_has(store, kind):
    url, options = new_url(kind), {**sections_of(kind), "snapshot": {"space": "white"}}
    # The rows that come are shorter.
    options["quality"] = {"max_norm_change": None}
    feed(store, url, **options)
    held = open_index(url).state
    Night({f"doc-{n:03d}": Document("other") for n in range(40)}, deletes=["doc-050"]).commit(store)
    report = feed(store, url, **options)
    assert (report.action, report.is_published) == ("delta", True)
    reader = open_index(url)
    assert reader.state.projection == held.projection
    projection = reader.state.read_projection()
    assert projection is not None
    ids, rows = [], []
    _, dataset = open_snapshot(store.url)
    for row in dataset.to_table(columns=["id", "vector"]).to_pylist():
        ids.append(row["id"])
        rows.append(row["vector"])
    assert ids_in(url) == set(ids)
    rows_ND = projection.apply(np.array(rows, np.float32))
    rows_ND /= np.linalg.norm(rows_ND, axis=1, keepdims=True)
    queries_QD = projection.apply(QUERIES.astype(np.float32))
    queries_QD /= np.linalg.norm(queries_QD, axis=1, keepdims=True)
    found = nearest_in_index(reader, QUERIES, 5, {}, [None] * 4)
    for query_D, hits in zip(queries_QD, found, strict=True):
        cosines = dict(zip(ids, (rows_ND @ query_D).tolist(), strict=True))
        best = sorted(cosines, key=lambda id_: -cosines[id_])[:5]
        assert set(scores(hits)) == set(best)
        assert scores(hits) == pytest.approx(
            {id_: cosines[id_] for id_ in best}, abs=SCORE_TOLERANCE
        )


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_another_space_builds_the_index_anew(store, kind):
    url, options = new_url(kind), sections_of(kind)
    feed(store, url, **options)
    assert open_index(url).state.projection is None
    report = feed(store, url, snapshot={"space": "centered"}, **options)
    assert report.action == "full"
    assert report.reason == "the index has other space: it was plain, is centered"
    assert open_index(url).state.space == "centered"
    assert feed(store, url, snapshot={"space": "centered"}, **options).action == "none"
    assert feed(store, url, **options).action == "full"


def test_a_space_of_few_rows_is_centered_and_made_anew_as_they_grow(memory_url, caplog):
    store, url = SnapshotStore(open_storage(memory_url)), new_url("flat")
    options = {"snapshot": {"space": "white"}, "quality": {"sample": 0}}
    Night({f"doc-{n}": Document("one") for n in range(2 * DIM)}).commit(store)
    feed(store, url, **options)
    assert f"{2 * DIM} rows of {DIM} elements are too few, or too alike" in caplog.text
    first = open_index(url).state
    assert (first.space, first.fitted_rows) == ("white", 2 * DIM)
    Night({f"more-{n}": Document("one") for n in range(6 * DIM)}).commit(store)
    assert feed(store, url, **options).action == "delta"
    Night({"last": Document("one")}).commit(store)
    report = feed(store, url, **options)
    assert report.action == "full"
    assert report.reason == "its space was made of 16 rows, and there are now 65"
    projection = open_index(url).state.read_projection()
    assert projection is not None
    assert projection.scale_DD is not None
    assert feed(store, url, **options).action == "none"


def test_equal_rows_have_no_direction_to_whiten_and_are_centered(memory_url):
    store, url = SnapshotStore(open_storage(memory_url)), new_url("flat")
    ids = [f"doc-{n}" for n in range(40)]
    commit(store, [write_vectors(store.storage, ids, np.ones((40, DIM)))])
    feed(store, url, snapshot={"space": "white"})
    projection = open_index(url).state.read_projection()
    assert projection is not None
    assert projection.scale_DD is None
    (hits,) = nearest_in_index(open_index(url), QUERIES[:1], 5, {}, [None])
    assert [hit.score for hit in hits] == [0] * 5


def test_a_space_that_cannot_be_kept_is_refused(store, memory_url):
    options = {"index": {"kind": "opensearch"}, "snapshot": {"space": "white"}}
    with pytest.raises(ConfigError, match="white is a matrix .* take centered"):
        open_feeder(config_of(store, new_url("opensearch"), **options))
    wide = SnapshotStore(open_storage(memory_url))
    dim = 2049
    commit(wide, [write_vectors(wide.storage, ["a", "b"], np.eye(2, dim))], dim=dim)
    with pytest.raises(ConfigError, match="of up to 2048 x 2048, found vectors of 2049"):
        feed(wide, new_url("flat"), snapshot={"space": "white"})


def test_a_projection_survives_as_text_and_a_damaged_one_is_said():
    random = np.random.default_rng(3)
    fitted = Projection.fit(
        [random.standard_normal((100, DIM)) * np.arange(1, DIM + 1)], DIM, "white"
    )
    kept = Projection.from_json(fitted.to_json())
    assert kept.to_json() == fitted.to_json()
    rows_ND = random.standard_normal((10, DIM))
    before, after = fitted.apply(rows_ND), kept.apply(rows_ND)
    before /= np.linalg.norm(before, axis=1, keepdims=True)
    after /= np.linalg.norm(after, axis=1, keepdims=True)
    np.testing.assert_allclose(after, before, atol=SCORE_TOLERANCE)
    state = IndexState(1, "run", "f", "vector", DIM, ("id",), 0, {}, "white", kept.to_json())
    assert IndexState.from_json(state.to_json(), "here") == state
    broken = state.to_json() | {"projection": {"mean": "####", "scale": None}}
    with pytest.raises(CorruptFileError, match="projection cannot be read"):
        IndexState.from_json(broken, "here").read_projection()
    with pytest.raises(CorruptFileError, match="a space of white, centered, plain"):
        IndexState.from_json(state.to_json() | {"space": "round"}, "here")
