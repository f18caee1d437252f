"""`jobs.embed` and `jobs.search` from the command line: errors that a person understands."""

import json
import subprocess
import sys

import pytest


def elmo(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "jobs", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def settings(tmp_path, shared):
    (tmp_path / "corpus.jsonl").write_text('{"id": "a", "text": "One document."}\n')
    folder = shared / "golden/bilm-tf"
    values = {
        "source.path": tmp_path / "corpus.jsonl",
        "source.id_column": "id",
        "model.options_file": folder / "options.json",
        "model.weights_file": folder / "lm_weights.hdf5",
        "output.path": tmp_path / "vectors",
    }

    def make(**changes):
        merged = {**values, **{key.replace("__", "."): value for key, value in changes.items()}}
        return [word for key, value in merged.items() for word in ("--set", f"{key}={value}")]

    return make


@pytest.mark.parametrize(
    ("change", "exit_code", "message"),
    [
        ({"source__path": "/no/such/corpus"}, 3, "/no/such/corpus"),
        ({"source__text_columns": "[body]"}, 3, "body"),
        ({"model__weights_file": "/no/such/weights.hdf5"}, 2, "/no/such/weights.hdf5"),
        ({"model__layers": "middle"}, 2, "layers"),
        ({"vectors__pooling": "sum"}, 2, "vectors.pooling"),
        ({"vectors__pool": "mean"}, 2, "did you mean"),
    ],
)
def test_a_wrong_setting_is_one_clear_line_and_nothing_is_written(
    settings, tmp_path, change, exit_code, message
):
    done = elmo("embed", *settings(**change))
    assert done.returncode == exit_code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "vectors").exists()


def test_weights_of_another_model_are_named_with_both_shapes(settings, shared, tmp_path):
    options = json.loads((shared / "golden/bilm-tf/options.json").read_text())
    options["lstm"]["projection_dim"] = 32
    (tmp_path / "options.json").write_text(json.dumps(options))
    done = elmo("embed", *settings(model__options_file=tmp_path / "options.json"))
    assert done.returncode == 2
    assert "lm_weights.hdf5" in done.stderr
    assert "(124, 16)" in done.stderr
    assert "(124, 32)" in done.stderr


@pytest.mark.timeout(300)
def test_a_dry_run_prints_the_plan_and_writes_no_vector(settings, tmp_path):
    done = elmo("embed", *settings(), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["result"]
    assert (plan["documents"], plan["new"], plan["partitions"], plan["files"]) == (1, 1, 1, 1)
    assert plan["tokens"] == 3
    assert plan["output_bytes"] > 0
    assert plan["tokens_per_s"] > 0
    written = [path for path in (tmp_path / "vectors").rglob("*") if path.is_file()]
    assert written == []


def test_searching_where_no_snapshot_is_says_so(tmp_path):
    done = elmo("search", str(tmp_path), "a query")
    assert done.returncode == 2
    assert "there is no snapshot" in done.stderr
