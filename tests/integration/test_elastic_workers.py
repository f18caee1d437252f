"""Workers on a cluster whose nodes come and go: as many train as there is room for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.pretraining.run import finish, prepare, train_here
from tests.integration.elastic_workers import elastic_config
from tests.pipeline.pretraining.test_run import config_of, losses_of

ROOT = Path(__file__).resolve().parents[2]
# Sums of gradients in another order, over some hundred steps.
REL_LOSSES = 1e-2


@pytest.mark.timeout(1200)
def test_as_many_workers_train_as_there_is_room_for(tmp_path, monkeypatch):
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.elastic_workers", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert "asks for 2 to 3 workers with 1 CPU each" in result["refused"]
    assert "there would be room for 1 if nothing else ran" in result["refused"]
    # All nodes of this cluster are this host.
    assert result["hosts"] == [[], []]
    assert result["stopped"] == 143, result
    heard = "\n".join(result["heard"])
    assert "training with 2 of 3 workers; the 2 nodes of the cluster have 2 CPU" in heard
    assert "workers failed (1 of 2 times that run.max_failures allows)" in heard
    assert "training with 1 of 3 workers; the 1 nodes of the cluster have 1 CPU" in heard
    assert "more workers, and the others stop for them" in heard
    assert "stopped after step" in heard
    lost, joined, told = result["changed_at"]

    # The same training goes on without Ray, and its record tells of all that there was.
    monkeypatch.chdir(tmp_path)
    resumed = prepare(elastic_config(tmp_path)).resumed_step
    assert resumed >= told > joined > lost
    config = elastic_config(tmp_path, max_steps=resumed + 2, num_workers=0)
    prepared = prepare(config)
    record = finish(prepared, train_here(prepared.task, lambda *progress: None))
    crews = [(span["from_step"], span["num_workers"]) for span in record["workers"]]
    numbers = [number for _, number in crews]
    # The two that joined may have been met one by one.
    assert numbers in ([2, 1, 3, 1], [2, 1, 2, 3, 1])
    assert record["num_workers"] == 1
    assert lost <= crews[1][0] < joined <= crews[2][0] <= told
    assert crews[-1][0] == resumed

    whole = config_of(
        tmp_path / "corpus.jsonl",
        tmp_path / "whole",
        max_steps=resumed + 2,
        num_evaluations=1,
        learning_rate_decay="none",
    )
    train_here(prepare(whole).task, lambda *progress: None)
    found, expected = losses_of(config), losses_of(whole)
    assert list(found) == list(range(1, resumed + 3))
    for step, losses in expected.items():
        assert found[step] == pytest.approx(losses, rel=REL_LOSSES)
