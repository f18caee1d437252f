"""`elmo tune-mix` from the command line, and `elmo embed --mix` with what it wrote."""

import csv
import hashlib
import json
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from elmo_model import Encoder
from elmo_model.directory import save_directory
from elmo_model.options import ElmoOptions
from elmo_model.weights import read_weights
from jobs.command import Call, build_parser, main
from jobs.embed import JOB as EMBED
from jobs.run_report import preparation
from jobs.tune_mix import JOB
from pipeline.config import OutputConfig, TextConfig, VectorConfig
from pipeline.data_files import DataFileWriter
from pipeline.errors import ConfigError
from pipeline.evaluation.bilms import LayerVectors
from pipeline.evaluation.documents import tokenised
from pipeline.evaluation.tune import LabelledSet, tune
from pipeline.mix_file import MixFile
from pipeline.model import ElmoBackend
from pipeline.schema import output_schema
from pipeline.snapshot.commit import SnapshotStore
from pipeline.storage import open_storage
from tests.elmo_model.random_models import write_model
from tests.pipeline.snapshots import snapshot

# Learning the same vectors twice; only the order of rows in memory may differ.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two model directories of the same shape with other weights."""
    paths = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"released{seed}")
        files = write_model(folder, seed=seed)
        options = ElmoOptions.read(files["options_file"])
        path = tmp_path_factory.mktemp(f"model{seed}")
        save_directory(path, options, read_weights(files["weights_file"], options))
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A table of texts with ids, a label that the words tell, and a score that pairs tell."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("labelled") / "reviews.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "other", "label", "score"])
        for number in range(160):
            word, other = rng.choice(["good", "bad"]), rng.choice(["good", "bad"])
            text = f"a {word} thing, number {number}"
            # Of a pair: how many of its texts are good.
            score = (word == "good") + (other == "good")
            writer.writerow([f"r{number}", text, f"an {other} one", word, score])
    return path


def run(capsys, *words):
    code = main(JOB, [*map(str, words), "--json", "--quiet"])
    return code, json.loads(capsys.readouterr().out)


def embedding(models, *more, model=0):
    """The configuration of `elmo embed` with these flags."""
    values = {"source.path": "corpus", "output.path": "out", "model.directory": models[model]}
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    arguments = build_parser(EMBED).parse_args([*words, *map(str, more)])
    return preparation(Call("embed", arguments))[0]


def hash_of(text):
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def write_snapshot(url, rows, layers_NKD, sha):
    """A snapshot of all layers of documents, as `elmo embed` with model.layers = all writes it."""
    columns = [f"vector_{layer}" for layer in range(layers_NKD.shape[1])]
    dim = layers_NKD.shape[2]
    schema = output_schema(VectorConfig(dtype="float32"), dim, columns, [])
    # The text's half, and that of columns which are carried and differ for equal texts.
    hashes = [hash_of(row["text"]) + hash_of(row["id"]) for row in rows]
    arrays = [pa.array([row["id"] for row in rows]), pa.array(hashes, pa.binary(16))]
    for layer, name in enumerate(columns):
        flat = pa.array(np.ascontiguousarray(layers_NKD[:, layer]).reshape(-1))
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=schema.field(name).type))
    storage = open_storage(str(url))
    writer = DataFileWriter(storage, schema, OutputConfig(path=storage.url), {}, "run-1")
    writer.write(pa.record_batch(arrays, schema=schema))
    config = {
        "source": {"path": "x"},
        "model": {"directory": "m", "layers": "all"},
        "output": {"path": storage.url},
    }
    made = snapshot([writer.close()], config=config, schema=schema, encoder={"weights_sha256": sha})
    SnapshotStore(storage).commit(made)


def test_the_mix_is_learned_compared_and_written_with_a_chart(models, reviews, tmp_path, capsys):
    output, chart = tmp_path / "mix.json", tmp_path / "mix.png"
    flags = ("--model", models[0], "--output", output, "--chart", chart)
    code, status = run(capsys, reviews, *flags)
    assert code == 0
    result = status["result"]
    assert result["learned_from"] + result["held_out"] == 160
    assert sum(result["shares"]) == pytest.approx(1)
    names = [score["name"] for score in result["scores"]]
    assert names[:2] == ["learned mix", "average of layers"]
    assert names[2:] == ["layer 0 (no context)", "layer 1", "layer 2"]
    assert result["scores"][0]["value"] > 0.9
    mix = MixFile.read(str(output))
    assert list(mix.mix_weights) == result["mix_weights"]
    assert mix.weights_sha256 == result["weights_sha256"]
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_pairs_are_scored_by_rank(models, reviews, capsys):
    flags = ("--text", "text", "other", "--label", "score", "--target", "score")
    code, status = run(capsys, reviews, *flags, "--model", models[0])
    assert code == 0
    assert status["result"]["metric"] == "Spearman"
    assert status["result"]["scores"][0]["value"] > 0.7


def test_a_snapshot_of_all_layers_gives_the_mix_that_its_model_gives(
    models, reviews, tmp_path, capsys
):
    with reviews.open() as file:
        rows = list(csv.DictReader(file))
    encoder = Encoder.from_directory(models[0], device="cpu")
    documents = tokenised([row["text"] for row in rows], TextConfig())
    layers_NKD = LayerVectors.all_layers(encoder).of_documents(documents)
    write_snapshot(tmp_path / "all", rows[::-1], layers_NKD[::-1], encoder.weights_sha256)
    with_ids = tmp_path / "labels.csv"
    with_ids.write_text("".join(["id,label\n", *(f"{r['id']},{r['label']}\n" for r in rows)]))
    code, stored = run(capsys, with_ids, "--snapshot", tmp_path / "all")
    assert code == 0
    # What is held out goes by the snapshot's hashes of the texts, so that equal ones stay together.
    labelled = LabelledSet.read(with_ids, ["id"], "label", "class")
    hashes = tuple(hash_of(row["text"]).hex() for row in rows)
    fresh = tune(replace(labelled, keys=(hashes,)), [layers_NKD], 0.001)
    assert stored["result"]["held_out"] == fresh.num_test
    assert stored["result"]["shares"] == pytest.approx(fresh.mix.shares, abs=TOLERANCE)
    assert stored["result"]["weights_sha256"] == encoder.weights_sha256
    with_ids.write_text("id,label\n" + "r0,a\nr1,b\nnowhere,a\n" * 10)
    assert main(JOB, [str(with_ids), "--snapshot", str(tmp_path / "all"), "--quiet"]) == 3
    assert "10 of 30 ids are not in" in capsys.readouterr().err


def test_a_mix_is_embedded_with_and_is_part_of_the_fingerprint(models, tmp_path):
    plain = embedding(models)
    described = ElmoBackend().describe(plain)
    sha = described.details["weights_sha256"]
    MixFile((0.5, -1.0, 2.0), 1.5, sha).write(str(tmp_path / "mix.json"))
    # The file wins over what the configuration says of layers.
    mixed = embedding(models, "--set", "model.layers=top", "--mix", tmp_path / "mix.json")
    assert mixed.model.layers == "mix"
    assert (mixed.model.mix_weights, mixed.model.mix_gamma) == ((0.5, -1.0, 2.0), 1.5)
    found = ElmoBackend().describe(mixed)
    assert found.details["mix_weights"] == [0.5, -1.0, 2.0]
    assert found.fingerprint != described.fingerprint


def test_a_mix_of_another_model_is_refused(models, tmp_path):
    sha = ElmoBackend().describe(embedding(models)).details["weights_sha256"]
    MixFile((0.5, -1.0, 2.0), 1.5, sha).write(str(tmp_path / "mix.json"))
    other = embedding(models, "--mix", tmp_path / "mix.json", model=1)
    with pytest.raises(ConfigError, match="learn the mix again with 'elmo tune-mix'"):
        ElmoBackend().describe(other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a file of 'elmo tune-mix'"),
        ('{"mix_weights": [1, 2]}', "not a file of 'elmo tune-mix'"),
        ('{"mix_weights": [], "mix_gamma": 1, "weights_sha256": "a"}', "must be finite"),
        ('{"mix_weights": [NaN], "mix_gamma": 1, "weights_sha256": "a"}', "must be finite"),
    ],
)
def test_what_is_no_mix_is_named(content, message, tmp_path):
    path = tmp_path / "mix.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        MixFile.read(str(path))
    assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="no such file"):
        MixFile.read(str(tmp_path / "missing.json"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--label", "stars"), "no column stars; its columns are id, text, other, label, score"),
        (("--text", "a", "b", "c"), "expected one column, or two for pairs, got 3"),
        (("--label", "text", "--target", "score"), "expected scores"),
        (("--l2", "-1"), "expected 0 or more"),
        (("--snapshot", "x", "--dry-run"), "give --snapshot, or a model"),
        (("--chart", "nowhere://b/x.png"), "nowhere"),
        ((), "give either model.directory or both"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(words, message, models, reviews, capsys):
    model = ("--model", models[0]) if words else ()
    assert main(JOB, [*map(str, (reviews, *words, *model)), "--quiet"]) in (2, 3)
    assert message in capsys.readouterr().err
