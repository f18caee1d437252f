"""A whole run on a real Ray: from files to a committed snapshot, and what the next run does."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from elmo_model.encoder import Encoder
from elmo_model.errors import DeviceError
from pipeline.config import EmbedConfig, build
from pipeline.errors import (
    ClusterError,
    CommitConflictError,
    ConfigError,
    SourceError,
    TooManyRejectsError,
)
from pipeline.run import execute, prepare
from pipeline.snapshot.read import open_snapshot
from tests.elmo_model.random_models import write_model
from tests.integration.stand_in import WordBackend, word_vector

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Vectors are stored as float16, whose rounding is at most 2^-11 of the value.
FLOAT16_RTOL = 2**-10
FLOAT16_ATOL = 1e-4


@pytest.fixture
def model():
    """The stand-in needs no files."""
    return {"directory": "none"}


@pytest.fixture
def golden_model(shared):
    return {
        "options_file": str(shared / "golden/bilm-tf/options.json"),
        "weights_file": str(shared / "golden/bilm-tf/lm_weights.hdf5"),
    }


@pytest.fixture
def documents():
    words = ["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "far", "away", "home"]
    rng = np.random.default_rng(3)
    return {
        f"doc-{number:03d}": {
            "text": ". ".join(
                " ".join(rng.choice(words, size=rng.integers(1, 12))).capitalize()
                for _ in range(rng.integers(1, 5))
            )
            + ".",
            "lang": ["en", "de", "fr"][number % 3],
            "title": f"Title {number}",
        }
        for number in range(120)
    }


def write_corpus(folder, documents, files=4):
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(documents)
    for number in range(files):
        rows = [{"id": name, **documents[name]} for name in names[number::files]]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"part-{number}.parquet")


def make_config(tmp_path, model, **changes):
    values = {
        "source": {
            "path": str(tmp_path / "corpus"),
            "id_column": "id",
            "partition_columns": ["lang"],
            "carry_columns": ["title"],
        },
        "model": model,
        "output": {"path": str(tmp_path / "vectors")},
        "run": {"num_actors": 2, "max_rejected_share": 0.5, "documents_per_task": 30},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values.setdefault(section, {})[name] = value
    return build(EmbedConfig, values, "test")


def plan(config, **options):
    return prepare(config, backend=WordBackend(), **options)


def run(config, **options):
    return execute(plan(config, **options))


def run_elmo(config):
    return execute(prepare(config))


def read(config, number=None):
    snapshot, dataset = open_snapshot(config.output.path, number)
    return snapshot, {row["id"]: row for row in dataset.to_table().to_pylist()}


def test_every_document_gets_the_vector_that_the_encoder_gives_it(
    tmp_path, golden_model, documents
):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path, golden_model, model__layers="average")
    report = run_elmo(config)
    assert report.num_new == len(documents)
    snapshot, rows = read(config)
    assert set(rows) == set(documents)
    encoder = Encoder.from_files(golden_model["options_file"], golden_model["weights_file"])
    for name, document in list(documents.items())[:10]:
        assert rows[name]["lang"] == document["lang"]
        assert rows[name]["title"] == document["title"]
        sentences = [
            [*sentence.split(), "."] for sentence in document["text"].rstrip(".").split(". ")
        ]
        activations = encoder.encode(sentences)
        expected = activations.layers.mean(0)[activations.mask].mean(0).numpy()
        np.testing.assert_allclose(
            np.array(rows[name]["vector"], np.float32),
            expected,
            rtol=FLOAT16_RTOL,
            atol=FLOAT16_ATOL,
        )
    assert snapshot.counts["documents"] == len(documents)


def test_the_golden_vectors_come_out_of_the_whole_run(tmp_path, golden_model, shared):
    import h5py

    sentences = json.loads((shared / "golden/bilm-tf/lm_embeddings_sentences.json").read_text())
    first_batch = [rows[0] for rows in sentences]
    (tmp_path / "corpus").mkdir()
    with (tmp_path / "corpus/lines.jsonl").open("w") as file:
        for number, sentence in enumerate(first_batch):
            file.write(json.dumps({"id": str(number), "text": sentence}) + "\n")
    config = make_config(
        tmp_path,
        golden_model,
        model__layers="all",
        text__tokenizer="pretokenized",
        source__partition_columns=[],
        source__carry_columns=[],
        vectors__level="token",
        vectors__dtype="float32",
        output__format="arrow",
    )
    run_elmo(config)
    _, dataset = open_snapshot(config.output.path)
    table = dataset.to_table().sort_by([("id", "ascending"), ("token_index", "ascending")])
    golden = h5py.File(shared / "golden/tf-inference/bilm-tf.hdf5")["batch_0"]
    for number, sentence in enumerate(first_batch):
        rows = table.filter(pads.field("id") == str(number))
        assert rows["token"].to_pylist() == sentence.split()
        for layer in range(3):
            found = np.stack(rows[f"vector_{layer}"].to_numpy())
            expected = golden["lm_embeddings"][number, layer, : len(found)]
            # The reference values carry TensorFlow's own float32 rounding.
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_a_second_run_over_the_same_corpus_commits_nothing(tmp_path, model, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path, model)
    assert run(config).snapshot.number == 1
    prepared = plan(config)
    assert prepared.is_repeat
    assert execute(prepared).snapshot is None
    # Files that were only rewritten are read again, and found to say the same.
    write_corpus(tmp_path / "corpus", documents, files=3)
    (tmp_path / "corpus/part-3.parquet").unlink()
    report = run(config)
    assert report.snapshot is None
    assert report.num_unchanged == len(documents)
    assert open_snapshot(config.output.path)[0].number == 1


def test_added_changed_and_gone_documents_are_all_that_a_second_run_touches(
    tmp_path, model, documents
):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path, model)
    run(config)
    _, before = read(config)
    changed = dict(documents)
    for number in range(10):
        changed[f"new-{number}"] = {"text": f"New words {number}.", "lang": "en", "title": "N"}
    changed["doc-005"] = {**documents["doc-005"], "text": "Now it says something else."}
    changed["doc-006"] = {**documents["doc-006"], "lang": "fr"}
    changed["doc-007"] = {**documents["doc-007"], "title": "Renamed"}
    for name in ("doc-010", "doc-011"):
        del changed[name]
    write_corpus(tmp_path / "corpus", changed)
    report = run(config)
    assert (report.num_new, report.num_changed, report.num_deleted) == (10, 3, 2)
    # What only moved to another partition or was renamed keeps its vectors.
    assert (report.counts.documents, report.accounting.metadata_only) == (11, 2)
    snapshot, after = read(config)
    assert snapshot.number == 2
    assert set(after) == set(changed)
    assert after["doc-006"]["lang"] == "fr"
    assert after["doc-007"]["title"] == "Renamed"
    words = ["Now", "it", "says", "something", "else", "."]
    expected = np.mean([word_vector(word) for word in words], axis=0)
    np.testing.assert_allclose(after["doc-005"]["vector"], expected, rtol=FLOAT16_RTOL)
    untouched = set(documents) & set(changed) - {"doc-005", "doc-006", "doc-007"}
    assert all(after[name] == before[name] for name in untouched)
    # The old snapshot still reads as it was.
    assert read(config, 1)[1] == before


def test_incremental_snapshots_equal_one_made_from_scratch(tmp_path, model, documents):
    write_corpus(tmp_path / "corpus", dict(list(documents.items())[:60]))
    config = make_config(tmp_path, model)
    run(config)
    write_corpus(tmp_path / "corpus", documents)
    run(config)
    scratch = make_config(tmp_path, model, output__path=str(tmp_path / "scratch"))
    run(scratch)
    step, whole = read(config)[1], read(scratch)[1]
    assert set(step) == set(whole)
    for name, row in whole.items():
        assert row["content_hash"] == step[name]["content_hash"]
        np.testing.assert_allclose(
            row["vector"], step[name]["vector"], rtol=FLOAT16_RTOL, atol=FLOAT16_ATOL
        )


def test_duplicate_ids_are_rejected_with_their_place_and_the_first_is_kept(
    tmp_path, model, documents
):
    few = dict(list(documents.items())[:6])
    write_corpus(tmp_path / "corpus", few, files=1)
    again = [{"id": "doc-002", "text": "A later row.", "lang": "en", "title": "x"}]
    pq.write_table(pa.Table.from_pylist(again), tmp_path / "corpus/z.parquet")
    config = make_config(tmp_path, model)
    report = run(config)
    assert report.rejected_by_code == {"duplicate_id": 1}
    assert read(config)[1]["doc-002"]["title"] == "Title 2"
    (row,) = pq.read_table(tmp_path / "vectors" / report.rejected_files[0]).to_pylist()
    assert row["source"].endswith("z.parquet")
    assert (row["offset"], row["id"], row["stage"]) == (0, "doc-002", "plan")


def test_too_many_rejected_rows_stop_the_run_before_any_vector_and_name_their_list(tmp_path, model):
    (tmp_path / "corpus").mkdir()
    lines = ['{"id": "a", "text": "fine", "lang": "en", "title": "t"}', "{broken", "[]"]
    (tmp_path / "corpus/x.jsonl").write_text("\n".join(lines))
    config = make_config(tmp_path, model, run__max_rejected_share=0.1)
    with pytest.raises(TooManyRejectsError, match=r"2 of 3 rows.*_rejected/") as caught:
        run(config)
    assert not (tmp_path / "vectors/data").exists()
    path = str(caught.value).split("each: ")[1]
    listed = pq.read_table(path).to_pylist()
    assert sorted(row["code"] for row in listed) == ["bad_json", "not_an_object"]
    assert sorted(row["offset"] for row in listed) == [
        len(lines[0]) + 1,
        len(lines[0]) + len(lines[1]) + 2,
    ]


def test_another_encoder_is_refused_until_reembedding_is_asked_for(tmp_path, model, documents):
    few = dict(list(documents.items())[:8])
    write_corpus(tmp_path / "corpus", few, files=1)
    run(make_config(tmp_path, model))
    top = make_config(tmp_path, model, model__layers="top")
    with pytest.raises(ConfigError, match="fingerprint.*--reembed"):
        plan(top)
    report = run(top, reembed=True)
    assert report.counts.documents == len(few)
    assert report.snapshot.operation == "reembed"
    assert set(read(top)[1]) == set(few)


def test_a_corpus_that_lost_most_documents_is_refused_without_the_flag(tmp_path, model, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(tmp_path, model)
    run(config)
    write_corpus(tmp_path / "corpus", dict(list(documents.items())[:20]))
    with pytest.raises(SourceError, match=r"100 of the snapshot's 120.*--allow-mass-delete"):
        plan(config)
    assert run(config, allow_mass_delete=True).num_deleted == 100
    assert len(read(config)[1]) == 20


def test_a_run_that_lost_the_race_changes_nothing_and_says_so(tmp_path, model, documents):
    few = dict(list(documents.items())[:8])
    write_corpus(tmp_path / "corpus", few, files=1)
    config = make_config(tmp_path, model)
    slow = plan(config)
    winner = run(make_config(tmp_path, model, run__documents_per_task=3))
    with pytest.raises(CommitConflictError):
        execute(slow)
    assert open_snapshot(config.output.path)[0].run_id == winner.snapshot.run_id


def test_more_actors_than_the_cluster_holds_is_an_error_and_not_a_hang(tmp_path, model, documents):
    write_corpus(tmp_path / "corpus", dict(list(documents.items())[:2]), files=1)
    with pytest.raises(ClusterError, match=r"num_actors = 500"):
        plan(make_config(tmp_path, model, run__num_actors=500))
    with pytest.raises(ClusterError, match="GPU"):
        plan(make_config(tmp_path, model, run__num_actors=1, run__gpus_per_actor=1.0))


def test_arithmetic_that_the_model_cannot_do_is_told_as_the_model_says_it(tmp_path, documents):
    """It is found out where the model is run, in an actor on another machine."""
    write_corpus(tmp_path / "corpus", dict(list(documents.items())[:2]), files=1)
    files = write_model(tmp_path, "no projection in the LSTM")
    model = {"dtype": "int8", **{name: str(path) for name, path in files.items()}}
    config = make_config(tmp_path, model)
    with pytest.raises(DeviceError, match="^dtype: int8 needs a model with a projection"):
        run_elmo(config)
    assert not list((tmp_path / "vectors").glob("_snapshots/*"))


def test_a_document_is_never_divided_between_files(tmp_path, model, documents):
    write_corpus(tmp_path / "corpus", documents)
    config = make_config(
        tmp_path,
        model,
        vectors__level="sentence",
        output__target_file_bytes=2000,
        batch__window_tokens=50,
        batch__max_tokens=300,
        run__documents_per_task=40,
    )
    run(config)
    snapshot, _ = open_snapshot(config.output.path)
    assert len(snapshot.files) > 6
    seen = set()
    for file in snapshot.files:
        ids = set(pq.read_table(tmp_path / "vectors" / file.path)["id"].to_pylist())
        assert not ids & seen
        assert len(ids) == file.num_documents
        seen |= ids
    assert seen == set(documents)
