"""Training by several workers of a Ray cluster: as one would, and on after one of them dies."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from elmo_model.directory import load_directory
from pipeline.errors import ClusterError
from pipeline.pretraining.checkpoints import Checkpoints
from pipeline.pretraining.ray_text import on_ray
from pipeline.pretraining.ray_train import train_on_ray
from pipeline.pretraining.run import finish, prepare, train_here
from pipeline.storage import open_storage
from tests.pipeline.pretraining.test_run import config_of, losses_of
from tests.pipeline.toy_corpus import write_toy_corpus

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return write_toy_corpus(folder / "corpus.jsonl")


def silent(*progress):
    pass


def trained_on_ray(config, on_progress=silent):
    prepared = prepare(config, on_ray)
    return prepared, train_on_ray(prepared.task, on_progress)


def assert_like(found, expected, rel=1e-4):
    """Equal but for the order in which the rows are added up."""
    assert found.keys() == expected.keys()
    for step, losses in expected.items():
        assert found[step] == pytest.approx(losses, rel=rel)


def training_workers():
    """Processes of Ray Train's workers."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if b"RayTrainWorker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return sorted(found)


# Dropout for each element depends on who has which rows, the other kinds do not.
DROPOUT = {"dropout": 0.3, "dropout_kind": "variational", "weight_drop": 0.3}


@pytest.mark.parametrize(
    ("optimizer", "workers", "architecture"), [("adagrad", 2, DROPOUT), ("adamw", 3, {})]
)
def test_workers_learn_together_what_one_would(toy, tmp_path, optimizer, workers, architecture):
    settings = {
        "architecture": architecture,
        "optimizer": optimizer,
        "max_steps": 8,
        "state_reset_share": 0.4,
    }
    alone = config_of(toy, tmp_path / "alone", **settings)
    train_here(prepare(alone).task, silent)
    together = config_of(toy, tmp_path / "together", run={"num_workers": workers}, **settings)
    seen = []
    prepared, end = trained_on_ray(together, lambda *progress: seen.append(progress))
    assert end.is_done
    assert "held-out forward" in seen[-1][3]
    assert_like(losses_of(together), losses_of(alone))
    assert end.tokens == 8 * 8 * 10
    finish(prepared, end)
    state = load_directory(tmp_path / "together").state
    assert all(torch.isfinite(value).all() for value in state.values())


def test_a_training_goes_on_with_another_number_of_workers(toy, tmp_path):
    settings = {"learning_rate_decay": "none", "num_evaluations": 1}
    whole = config_of(toy, tmp_path / "whole", max_steps=6, **settings)
    train_here(prepare(whole).task, silent)
    for workers, steps in ((2, 3), (0, 6)):
        run = {"num_workers": workers}
        config = config_of(toy, tmp_path / "parts", run=run, max_steps=steps, **settings)
        task = prepare(config).task
        end = train_on_ray(task, silent) if workers else train_here(task, silent)
        assert end.step == steps
    assert_like(losses_of(config), losses_of(whole))


def test_a_worker_that_is_killed_is_replaced_and_nothing_changes(toy, tmp_path):
    settings = {"max_steps": 400, "num_evaluations": 1}
    run = {"num_workers": 2, "checkpoint_steps": 25, "checkpoint_interval_s": None}
    whole = config_of(toy, tmp_path / "whole", **settings)
    train_here(prepare(whole).task, silent)
    config = config_of(toy, tmp_path / "killed", run=run, **settings)
    killed = []

    def kill_a_worker():
        checkpoints = Checkpoints(open_storage(config.output.work_directory), "checkpoints")
        for _ in range(1200):
            if [step for step in checkpoints.steps() if step >= 50]:
                break
            time.sleep(0.05)
        killed.append(training_workers()[-1])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill_a_worker)
    thread.start()
    _, end = trained_on_ray(config)
    thread.join()
    assert killed
    assert end.step == 400
    assert_like(losses_of(config), losses_of(whole), rel=1e-2)


def test_workers_that_die_again_and_again_end_the_training_with_its_checkpoints(toy, tmp_path):
    run = {"num_workers": 2, "checkpoint_steps": 5, "max_failures": 0}
    config = config_of(toy, tmp_path / "model", run=run, max_steps=10**6)
    ended = threading.Event()

    def kill_workers():
        checkpoints = Checkpoints(open_storage(config.output.work_directory), "checkpoints")
        seen = set()
        while not ended.wait(0.1):
            fresh = [pid for pid in training_workers() if pid not in seen]
            if fresh and checkpoints.steps():
                time.sleep(2)
                seen.update(fresh)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(fresh[0], signal.SIGKILL)

    thread = threading.Thread(target=kill_workers)
    thread.start()
    try:
        with pytest.raises(ClusterError, match="failed 1 times.*the same command goes on"):
            trained_on_ray(config)
    finally:
        ended.set()
        thread.join()
    assert prepare(config).resumed_step > 0


def test_what_a_worker_says_reaches_the_user(toy, tmp_path):
    config = config_of(
        toy,
        tmp_path / "model",
        run={"num_workers": 2},
        learning_rate=1e30,
        clip_norm=None,
        warmup_steps=0,
    )
    with pytest.raises(Exception, match="training diverged, lower the learning rate") as raised:
        trained_on_ray(config)
    assert type(raised.value).__name__ == "ElmoError"


def test_the_corpus_is_prepared_in_tasks_as_it_is_in_one_process(toy, tmp_path):
    here = prepare(config_of(toy, tmp_path / "here")).task.text
    there = prepare(config_of(toy, tmp_path / "there"), on_ray).task.text
    assert json.loads(here.to_json()) == json.loads(there.to_json())
