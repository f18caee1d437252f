"""`elmo evaluate` from the command line: one's own files, the public sets, and what is refused."""

import json

import pytest

from elmo_model.directory import save_directory
from elmo_model.options import ElmoOptions
from elmo_model.weights import read_weights
from jobs.command import main
from jobs.evaluate import JOB
from pipeline.config import EmbedConfig, build
from pipeline.evaluation.catalogue import standard
from pipeline.model import ElmoBackend
from pipeline.snapshot.commit import SnapshotStore
from pipeline.storage import open_storage
from tests.elmo_model.random_models import write_model
from tests.pipeline.snapshots import snapshot


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def directory(released, tmp_path_factory):
    """The same model as a directory of ours."""
    options = ElmoOptions.read(released["options_file"])
    path = tmp_path_factory.mktemp("model")
    save_directory(path, options, read_weights(released["weights_file"], options))
    return path


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    path = tmp_path_factory.mktemp("sets") / "reviews.csv"
    rows = [f"a {'good' if n % 2 else 'bad'} thing of kind {n},{n % 2}" for n in range(120)]
    path.write_text("\n".join(["text,label", *rows]))
    return path


def run(capsys, *words):
    code = main(JOB, [*map(str, words), "--json", "--quiet"])
    return code, json.loads(capsys.readouterr().out)


def rows_of(status, task=0, table=0):
    return {row["name"]: row for row in status["result"]["tasks"][task]["tables"][table]["scores"]}


def test_a_table_has_all_baselines_layers_and_others_with_intervals(directory, reviews, capsys):
    words = ("--model", directory, "--own", f"classification={reviews}", "--against")
    code, status = run(capsys, *words, f"the same={directory}")
    assert code == 0
    rows = rows_of(status)
    assert list(rows) == [
        "TF-IDF",
        "random vectors",
        "untrained biLM",
        "layer 0 (no context)",
        "layer 1",
        "layer 2",
        "average of layers",
        "learned mix",
        "the same",
    ]
    assert rows["TF-IDF"]["value"] > 0.9
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows.values())
    average, same = rows["average of layers"], rows["the same"]
    assert same == {**average, "name": "the same", "group": "other"}
    result = status["result"]
    assert (result["layers"], result["dim"]) == (3, 12)
    assert 0 <= result["padding_share"] < 1
    assert result["tokens"] > 120 * 6
    (task,) = result["tasks"]
    assert sum(task["mix"]["shares"]) == pytest.approx(1)


def test_a_remote_snapshot_gives_the_layers_it_was_made_of_and_is_not_copied(
    directory, reviews, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ELMO_CACHE", str(tmp_path / "cache"))
    storage = open_storage("memory://worth/top")
    config = {
        "source": {"path": "corpus"},
        # A device that this machine has not: where it is measured, --device says.
        "model": {"directory": str(directory), "layers": "top", "device": "cuda:7"},
        "output": {"path": storage.url},
    }
    described = ElmoBackend().describe(build(EmbedConfig, config, "test"))
    SnapshotStore(storage).commit(snapshot(config=config, fingerprint=described.fingerprint))
    words = ("--own", f"classification={reviews}", "--against", f"stored={storage.url}")
    code, status = run(capsys, "--model", directory, "--device", "cpu", *words)
    assert code == 0
    rows = rows_of(status)
    assert rows["stored"] == {**rows["layer 2"], "name": "stored", "group": "other"}
    assert not (tmp_path / "cache").exists()


def test_released_files_give_the_table_that_the_directory_gives(
    directory, released, reviews, capsys
):
    own = ("--own", f"classification={reviews}")
    _, ours = run(capsys, "--model", directory, *own)
    options, weights = released["options_file"], released["weights_file"]
    _, theirs = run(capsys, "--options", options, "--weights", weights, *own)
    assert rows_of(ours) == rows_of(theirs)


@pytest.mark.shared
def test_tables_may_have_other_columns(directory, tmp_path, capsys):
    rows = [f"{n},a {'good' if n % 2 else 'bad'} thing,{n} of them,{n % 5}" for n in range(60)]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["number,left,right,degree", *rows]))
    own = ("--model", directory, "--own", f"similarity={path}")
    code, status = run(capsys, *own, "--text", "left", "right", "--label", "degree")
    assert code == 0
    assert status["result"]["tasks"][0]["num_items"] == 60
    own = ("--model", directory, "--own", f"classification={path}")
    code, status = run(capsys, *own, "--text", "right", "--label", "degree")
    assert code == 0
    assert any("5 classes" in note for note in status["result"]["tasks"][0]["notes"])


def test_every_public_set_is_read_and_scored_on_a_few_items(directory, shared, capsys):
    code, status = run(capsys, "--model", directory, "--data", shared / "data", "--max-items", 12)
    assert code == 0
    tasks = {task["name"]: task for task in status["result"]["tasks"]}
    assert list(tasks) == [listed.name for listed in standard()]
    for task in tasks.values():
        assert 0 < task["num_items"] <= 12
        for table in task["tables"]:
            assert min(row["low"] for row in table["scores"]) >= -1
            assert max(row["high"] for row in table["scores"]) <= 1
    assert rows_of(status, list(tasks).index("scifact"))["BM25"]["value"] > 0.5
    assert rows_of(status, list(tasks).index("cmrc"))["BM25"]["value"] > 0.8


def test_the_text_shows_scores_intervals_and_verdicts(directory, reviews, capsys):
    words = ["--model", str(directory), "--own", f"classification={reviews}", "--quiet"]
    assert main(JOB, words) == 0
    said = capsys.readouterr().out
    assert "95 % interval" in said
    assert "against TF-IDF" in said
    assert "* average of layers" in said
    assert "learned mix: shares of the layers" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either model.directory or both"),
        (("--model", "m"), "nothing to measure on"),
        (("--model", "m", "--own", "classification"), "expected two parts with = between"),
        (("--model", "m", "--own", "parsing=x"), "--own parsing with 1 paths: expected"),
        (("--model", "m", "--own", "classification=/no/such.csv"), "/no/such.csv"),
        (("--model", "m", "--own", "similarity=x.csv", "--text", "one"), "2 columns expected"),
        (("--model", "m", "--data", "/no/such"), "none of the public sets"),
        (("--model", "m", "--data", "x", "--tasks", "glue"), "unknown; known: scifact"),
        (("--model", "m", "--data", "x", "--tasks", "wic"), "x has no wic/train.data.txt"),
        (("--model", "m", "--data", "x", "--max-items", "0"), "expected 1 or more"),
        (("--model", "m", "--against", "a=x", "--against", "a=y"), "--against a: given twice"),
        (("--model", "m", "--tasks", "wic"), "give --data DIR too"),
        (("--model", "m", "--page", "nowhere://b/x.html"), "nowhere"),
        (("--model", "m", "--page", "pages/"), "names a directory"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(words, message, capsys):
    assert main(JOB, [*words, "--quiet"]) in (2, 3)
    assert message in capsys.readouterr().err


def test_two_tasks_or_lines_of_one_name_are_refused(directory, reviews, capsys):
    own = ["--own", f"classification={reviews}"]
    model = ["--model", str(directory), *own, "--quiet"]
    assert main(JOB, [*model, *own]) == 2
    assert "a task 'classification reviews.csv' already" in capsys.readouterr().err
    assert main(JOB, [*model, "--against", f"layer 1={directory}"]) == 2
    assert "--against layer 1: is the name of another line" in capsys.readouterr().err


def test_a_dry_run_reads_the_sets_and_no_model(reviews, capsys):
    words = ["--model", "/no/such/model", "--own", f"classification={reviews}", "--dry-run"]
    assert main(JOB, words) == 0
    assert "Would measure /no/such/model on classification reviews.csv" in capsys.readouterr().out
