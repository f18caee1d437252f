"""A run that is told to stop: it ends soon and cleanly, and the next one goes on from there."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.snapshot.read import open_snapshot

NUM_DOCUMENTS = 1200


@pytest.fixture
def config(shared, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    sentence = "The quick document number {n} has words that are long enough to take some time. "
    with corpus.open("w") as file:
        for n in range(NUM_DOCUMENTS):
            file.write(json.dumps({"id": f"d{n:05d}", "text": sentence.format(n=n) * 20}) + "\n")
    golden = shared / "golden/bilm-tf"
    path = tmp_path / "config.yaml"
    path.write_text(
        json.dumps(
            {
                "source": {"path": str(corpus), "id_column": "id"},
                "model": {
                    "options_file": str(golden / "options.json"),
                    "weights_file": str(golden / "lm_weights.hdf5"),
                },
                "output": {"path": str(tmp_path / "vectors")},
                "run": {"num_actors": 2, "documents_per_task": 50},
            }
        )
    )
    return path


def start(config, tmp_path):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "jobs.embed", "--config", str(config), "--json"),
            *("--result", str(tmp_path / "status.json")),
        ],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def recorded_documents(tmp_path):
    """Documents of the blocks that are recorded so far, by the records' paths."""
    found = {}
    for path in tmp_path.glob("vectors/_runs/*/*.json"):
        if path.name != "run.json":
            files = json.loads(path.read_text())["files"]
            found[path.name] = sum(file["num_documents"] for file in files)
    return found


@pytest.mark.shared
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_ends_cleanly_and_the_next_one_resumes_it(config, tmp_path, number, code):
    process = start(config, tmp_path)
    try:
        while len(recorded_documents(tmp_path)) < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        output, log = process.communicate(timeout=240)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, log
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("interrupted", code)
    assert output.startswith("{"), (output, log)
    assert json.loads(output)["status"] == "interrupted"
    assert "Traceback" not in log
    assert "received at time" not in log
    assert "the same command goes on from there" in log
    assert not list(tmp_path.glob("vectors/_snapshots/*"))
    recorded = sum(recorded_documents(tmp_path).values())
    assert 0 < recorded < NUM_DOCUMENTS

    again = start(config, tmp_path)
    output, log = again.communicate(timeout=480)
    assert again.returncode == 0, log
    result = json.loads(output)["result"]
    # An actor may have come to the end of its block before it was ended.
    resumed = result["rows"]["resumed"]
    assert recorded <= resumed < NUM_DOCUMENTS
    assert result["embedded_documents"] == NUM_DOCUMENTS - resumed
    rows = open_snapshot(str(tmp_path / "vectors"))[1].to_table(columns=["id"])
    assert sorted(rows["id"].to_pylist()) == [f"d{n:05d}" for n in range(NUM_DOCUMENTS)]
