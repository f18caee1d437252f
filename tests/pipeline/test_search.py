"""Exact search looks at every row, and queries go through the snapshot's own encoder."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pytest

from elmo_model import Encoder
from pipeline.config import EmbedConfig, build
from pipeline.errors import ConfigError
from pipeline.model import describe
from pipeline.prepare import table_schema
from pipeline.projection import WHITENING_FLOOR
from pipeline.schema import vector_type
from pipeline.search import SnapshotEncoder, nearest, word_uses
from pipeline.snapshot.metadata import Snapshot

DIM = 6


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(500, DIM)) + 3).astype(np.float16)


def as_dataset(vectors, **columns):
    flat = pa.array(vectors.reshape(-1))
    vector = pa.FixedSizeListArray.from_arrays(flat, type=vector_type("float16", DIM))
    ids = [f"row-{number:03d}" for number in range(len(vectors))]
    table = pa.table({"id": ids, **columns, "vector": vector})
    return pads.dataset(pa.Table.from_batches(table.to_batches(max_chunksize=64)))


@pytest.mark.parametrize("space", ["white", "centered", "plain"])
def test_the_nearest_rows_are_those_of_a_plain_computation(rows, space):
    queries = rows[:3].astype(np.float32) + 0.1
    hits = nearest(as_dataset(rows), queries, 7, space=space)
    plain = rows.astype(np.float64)
    mean = np.zeros(DIM) if space == "plain" else plain.mean(axis=0)
    plain, queries = plain - mean, queries - mean
    if space == "white":
        covariance = np.cov(plain.T, bias=True)
        covariance += np.eye(DIM) * WHITENING_FLOOR * np.trace(covariance) / DIM
        root = np.linalg.cholesky(np.linalg.inv(covariance))
        plain, queries = plain @ root, queries @ root
    for query, found in zip(queries, hits, strict=True):
        unit = plain / np.linalg.norm(plain, axis=1, keepdims=True)
        scores = unit @ query / np.linalg.norm(query)
        order = np.argsort(-scores)[:7]
        assert [hit.id for hit in found] == [f"row-{number:03d}" for number in order]
        np.testing.assert_allclose([hit.score for hit in found], scores[order], atol=1e-5)


def test_rows_can_be_filtered_and_few_rows_give_few_hits(rows):
    dataset = as_dataset(rows, part=["a"] * 498 + ["b"] * 2)
    (found,) = nearest(
        dataset, rows[:1].astype(np.float32), 5, row_filter=pc.field("part") == "b", space="plain"
    )
    assert {hit.id for hit in found} == {"row-498", "row-499"}
    assert found[0].columns["part"] == "b"


def test_an_excerpt_shows_the_passage_that_the_row_stands_for(rows):
    text = "x " * 100 + "the passage" + " y" * 100
    dataset = as_dataset(
        rows[:1],
        text=[text],
        start=pa.array([200], pa.int32()),
        end=pa.array([211], pa.int32()),
    )
    ((hit,),) = nearest(dataset, rows[:1].astype(np.float32), 1, space="plain")
    assert "the passage" in hit.excerpt
    assert len(hit.excerpt) < 110


@pytest.fixture
def config(shared):
    folder = shared / "golden/bilm-tf"
    values = {
        "source": {"path": "corpus", "carry_columns": ["text"]},
        "model": {
            "options_file": str(folder / "options.json"),
            "weights_file": str(folder / "lm_weights.hdf5"),
        },
        "output": {"path": "vectors"},
    }
    return build(EmbedConfig, values, "test")


def make_snapshot(config, fingerprint=None):
    encoder = Encoder.from_files(config.model.options_file, config.model.weights_file)
    described = describe(config, encoder)

    class Columns:
        carried_fields = (pa.field("text", pa.string()),)

    return Snapshot.new(
        number=1,
        parent=None,
        run_id="r",
        idempotency_key="k",
        operation="embed",
        fingerprint=fingerprint or described.fingerprint,
        encoder=described.details,
        config=config.model_dump(mode="json"),
        schema=table_schema(config, Columns(), described),
        counts={},
    )


def test_a_query_is_the_mean_of_its_tokens_in_the_mixed_layers(config):
    encoder = SnapshotEncoder(make_snapshot(config))
    plain = Encoder.from_files(config.model.options_file, config.model.weights_file)
    expected = plain.encode([["Read", "a", "file", "."]]).layers.mean(0)[0].mean(0)
    found = encoder.encode(["Read a file."])
    np.testing.assert_allclose(found[0, 0], expected.numpy(), atol=1e-6)


def test_another_encoder_is_refused(config):
    with pytest.raises(ConfigError, match="was made with encoder 000000000000"):
        SnapshotEncoder(make_snapshot(config, fingerprint="0" * 64))


def test_a_query_without_words_is_an_error(config):
    with pytest.raises(ConfigError, match="has no words"):
        SnapshotEncoder(make_snapshot(config)).encode(["   "])


def test_the_uses_of_a_word_are_ranked_by_their_context(config):
    texts = [
        "He put the money into the bank .",
        "They sat on the bank of the river .",
        "The bank of the river was green .",
        "Embankments are no banks .",
    ]
    dataset = pads.dataset(pa.table({"id": list("abcd"), "text": texts}))
    encoder = SnapshotEncoder(make_snapshot(config))
    hits = word_uses(dataset, encoder, "bank", [texts[0], texts[2]], 3)
    assert hits[0][0].id == "a"
    assert hits[1][0].id == "c"
    # Each context finds its own sentence, whose vector is the same up to rounding.
    assert min(hits[0][0].score, hits[1][0].score) > 0.999
    assert {hit.id for hit in hits[0]} == {"a", "b", "c"}


def test_a_word_that_is_not_there_is_an_error_that_says_where(config):
    encoder = SnapshotEncoder(make_snapshot(config))
    dataset = pads.dataset(pa.table({"id": ["a"], "text": ["A bank."]}))
    with pytest.raises(ConfigError, match="corpus has no token 'cow'"):
        word_uses(dataset, encoder, "cow", ["A cow."], 1)
    with pytest.raises(ConfigError, match="sentence 'A cow.' has no token 'bank'"):
        word_uses(dataset, encoder, "bank", ["A cow."], 1)
    with pytest.raises(ConfigError, match="does not carry the text"):
        word_uses(pads.dataset(pa.table({"id": ["a"]})), encoder, "bank", ["A bank."], 1)
