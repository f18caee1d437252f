"""`ray job submit` runs the main job on a cluster that was started by hand."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

from pipeline.snapshot.read import open_snapshot

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 300


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """A head node of its own, as `ray start --head` makes it; yields its dashboard's address."""
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        # A slow machine may need longer than the 3 s after which Ray kills a job that it stops.
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
    }
    dashboard = _free_port()
    with tempfile.TemporaryDirectory(prefix="rs", dir="/tmp") as folder:
        command = [
            str(binaries / "ray"),
            "start",
            "--head",
            "--block",
            "--node-ip-address=127.0.0.1",
            f"--port={_free_port()}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={_free_port()}",
            # The agent that starts jobs has a fixed port, which another Ray here may hold.
            f"--dashboard-agent-listen-port={_free_port()}",
            f"--dashboard-agent-grpc-port={_free_port()}",
            "--min-worker-port=27000",
            "--max-worker-port=27999",
            "--num-cpus=4",
            "--object-store-memory=300000000",
            f"--temp-dir={folder}",
            "--disable-usage-stats",
        ]
        head = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            _wait_for(f"{address}/api/version")
            yield address, environment
        finally:
            # The whole session of processes, and nothing else: `ray stop` would end every Ray here.
            os.killpg(head.pid, signal.SIGTERM)
            try:
                head.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)
                head.wait()


def _wait_for(url):
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _submit(cluster, *arguments):
    # The dashboard answers before the agent that starts jobs has joined it.
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        done = _submit_once(cluster, *arguments)
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


def _submit_once(cluster, *arguments):
    address, environment = cluster
    return subprocess.run(
        [
            str(Path(sys.executable).parent / "ray"),
            "job",
            "submit",
            "--address",
            address,
            "--working-dir",
            str(ROOT),
            "--runtime-env-json",
            json.dumps({"excludes": [".git", ".venv", ".demo", "tests"]}),
            "--",
            "python",
            "-m",
            "jobs.embed",
            *arguments,
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.timeout(1200)
def test_a_submitted_job_commits_a_snapshot_and_a_failed_one_leaves_its_status(
    cluster, shared, tmp_path
):
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"id": str(n), "text": f"The document number {n} is short."} for n in range(40)]
    corpus.write_text("\n".join(map(json.dumps, rows)))
    golden = shared / "golden/bilm-tf"
    config = tmp_path / "config.yaml"
    config.write_text(
        json.dumps(
            {
                "source": {"path": str(corpus), "id_column": "id"},
                "model": {
                    "options_file": str(golden / "options.json"),
                    "weights_file": str(golden / "lm_weights.hdf5"),
                },
                "output": {"path": str(tmp_path / "vectors")},
            }
        )
    )
    done = _submit(cluster, "--config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "committed snapshot 1" in done.stdout
    _, dataset = open_snapshot(str(tmp_path / "vectors"))
    assert dataset.count_rows() == 40

    # Ray folds every failure to exit code 1, so the job's own code stands in a result file.
    result = tmp_path / "result.json"
    missing = ["--set", f"source.path={tmp_path}/nowhere", "--result", str(result)]
    failed = _submit(cluster, "--config", str(config), *missing)
    assert failed.returncode == 1
    status = json.loads(result.read_text())
    assert status["exit_code"] == 3
    assert "nowhere" in status["error"]


@pytest.mark.timeout(1200)
def test_a_job_that_is_stopped_says_so_and_the_next_one_goes_on(cluster, shared, tmp_path):
    address, environment = cluster
    sentence = "The quick document number {n} has words that take some time to embed. "
    rows = [{"id": str(n), "text": sentence.format(n=n) * 20} for n in range(1500)]
    corpus, config = tmp_path / "corpus.jsonl", tmp_path / "config.yaml"
    corpus.write_text("\n".join(map(json.dumps, rows)))
    golden = shared / "golden/bilm-tf"
    values = {
        "source": {"path": str(corpus), "id_column": "id"},
        "model": {
            "options_file": str(golden / "options.json"),
            "weights_file": str(golden / "lm_weights.hdf5"),
        },
        "output": {"path": str(tmp_path / "vectors")},
        "run": {"num_actors": 2, "documents_per_task": 50},
    }
    config.write_text(json.dumps(values))
    result = tmp_path / "result.json"
    flags = ["--config", str(config), "--result", str(result)]
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(_submit, cluster, *flags)
        while not list(tmp_path.glob("vectors/_runs/*/" + "[0-9a-f]" * 32 + ".json")):
            assert not submitted.done(), submitted.result().stdout
            time.sleep(0.1)
        client = JobSubmissionClient(address)
        (job,) = [job for job in client.list_jobs() if job.status == "RUNNING"]
        client.stop_job(job.submission_id)
        done = submitted.result(timeout=120)
    assert "Traceback" not in done.stdout
    assert "the same command goes on from there" in done.stdout
    status = json.loads(result.read_text())
    assert (status["status"], status["exit_code"]) == ("interrupted", 143)

    again = _submit(cluster, *flags)
    assert again.returncode == 0, again.stdout + again.stderr
    found = json.loads(result.read_text())["result"]["rows"]
    assert found["resumed"] > 0
    assert found["embedded"] + found["resumed"] == len(rows)
