"""`elmo tune-mix` from the command line, and `elmo embed --mix` with what it wrote."""

import csv
import json
import random

import pytest

from elmo_model.directory import save_directory
from elmo_model.options import ElmoOptions
from elmo_model.weights import read_weights
from jobs.command import main
from jobs.embed import JOB as EMBED
from jobs.tune_mix import JOB
from pipeline.errors import ConfigError
from pipeline.mix_file import MixFile
from pipeline.snapshot.read import open_snapshot
from tests.elmo_model.random_models import write_model

# Vectors are stored in float32 here; a run with another batch adds in another order.
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
            writer.writerow([f"r{number}", text, f"an {other} one", word, int(word == other)])
    return path


def run(capsys, *words):
    code = main(JOB, [*map(str, words), "--json", "--quiet"])
    return code, json.loads(capsys.readouterr().out)


def embed(models, reviews, output, *more, model=0, **keys):
    values = {
        "source.path": reviews,
        "source.id_column": "id",
        "model.directory": models[model],
        "vectors.dtype": "float32",
        "output.path": output,
        "run.num_actors": 1,
        **keys,
    }
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return main(EMBED, [*words, *map(str, more), "--quiet"])


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


def test_a_snapshot_of_all_layers_gives_the_mix_that_its_model_gives(
    models, reviews, tmp_path, capsys, ray_cluster
):
    layers = {"model.layers": "all"}
    assert embed(models, reviews, tmp_path / "all", **layers) == 0
    capsys.readouterr()
    _, fresh = run(capsys, reviews, "--model", models[0])
    _, stored = run(capsys, reviews, "--snapshot", tmp_path / "all")
    assert stored["result"]["shares"] == pytest.approx(fresh["result"]["shares"], abs=TOLERANCE)
    assert stored["result"]["weights_sha256"] == fresh["result"]["weights_sha256"]


def test_embedding_with_a_mix_records_its_weights_and_changes_the_fingerprint(
    models, reviews, tmp_path, capsys, ray_cluster
):
    sha = run(capsys, reviews, "--model", models[0])[1]["result"]["weights_sha256"]
    MixFile((0.5, -1.0, 2.0), 1.5, sha).write(str(tmp_path / "mix.json"))
    mixed = ("--mix", tmp_path / "mix.json")
    assert embed(models, reviews, tmp_path / "mixed", *mixed) == 0
    assert embed(models, reviews, tmp_path / "plain") == 0
    capsys.readouterr()
    snapshot, dataset = open_snapshot(str(tmp_path / "mixed"))
    assert snapshot.config["model"]["layers"] == "mix"
    assert snapshot.config["model"]["mix_weights"] == [0.5, -1.0, 2.0]
    assert snapshot.config["model"]["mix_gamma"] == 1.5
    assert dataset.schema.names[-1] == "vector"
    plain, _ = open_snapshot(str(tmp_path / "plain"))
    assert plain.fingerprint != snapshot.fingerprint
    # Another model with the same number of layers would take the weights without a word.
    assert embed(models, reviews, tmp_path / "x", *mixed, "--dry-run", model=1) == 2
    assert "learn it again with 'elmo tune-mix'" in capsys.readouterr().err


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
        ((), "give either model.directory or both"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(words, message, models, reviews, capsys):
    model = ("--model", models[0]) if words else ()
    assert main(JOB, [*map(str, (reviews, *words, *model)), "--quiet"]) in (2, 3)
    assert message in capsys.readouterr().err
