"""Training by several workers of a Ray cluster: as one would, and on after one of them dies."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from elmo_model.directory import load_directory
from pipeline.errors import ClusterError
from pipeline.pretraining.checkpoints import Checkpoints
from pipeline.pretraining.loop import CrewSpan
from pipeline.pretraining.ray_text import on_ray
from pipeline.pretraining.ray_train import train_on_ray
from pipeline.pretraining.run import finish, prepare, train_here
from pipeline.storage import open_storage
from tests.pipeline.pretraining.test_run import config_of, losses_of
from tests.pipeline.toy_corpus import toy_config, write_toy_corpus

ROOT = Path(__file__).resolve().parents[2]
# Each test starts several processes that import torch, which a slow machine does slowly.
pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(900)]


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
    """Processes of Ray Train's workers that this process has started, by its Ray."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
            if b"RayTrainWorker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return sorted(pid for pid in found if os.getpid() in ancestors(pid, parents))


def ancestors(pid, parents):
    while pid in parents:
        pid = parents[pid]
        yield pid


def newest_step(work):
    """Step of the newest checkpoint; 0 if there is none."""
    return max(Checkpoints(open_storage(str(work)), "checkpoints").steps(), default=0)


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
    assert "held-out perplexity forward" in seen[-1][3]
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
    settings = {"num_evaluations": 1, "learning_rate_decay": "none"}
    run = {"num_workers": 2, "checkpoint_steps": 5, "checkpoint_interval_s": None}
    config = config_of(toy, tmp_path / "killed", run=run, max_steps=10**6, **settings)
    killed = []

    def kill_a_worker_then_stop(*progress):
        newest = newest_step(config.output.work_directory)
        if newest >= 20 and not killed:
            os.kill(training_workers()[-1], signal.SIGKILL)
            # What is under way may still be written.
            killed.append(newest + 10)
        elif len(killed) == 1 and newest > killed[0]:
            killed.append(newest)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        trained_on_ray(config, kill_a_worker_then_stop)
    found = losses_of(config)
    assert list(found) == list(range(1, len(found) + 1))
    whole = config_of(toy, tmp_path / "whole", max_steps=len(found), **settings)
    train_here(prepare(whole).task, silent)
    assert_like(found, losses_of(whole), rel=1e-2)


def test_workers_that_die_too_often_end_the_training_with_its_checkpoints(toy, tmp_path):
    run = {"num_workers": 2, "checkpoint_steps": 5, "max_failures": 0}
    config = config_of(toy, tmp_path / "model", run=run, max_steps=10**6)
    killed = []

    def kill_a_worker(*progress):
        if newest_step(config.output.work_directory) and not killed:
            killed.append(training_workers()[0])
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(ClusterError, match="failed 1 times.*the same command goes on"):
        trained_on_ray(config, kill_a_worker)
    assert killed
    assert prepare(config).resumed_step > 0


def test_a_signal_ends_the_workers_with_a_checkpoint_and_the_same_command_goes_on(
    ray_cluster, toy, tmp_path
):
    values = toy_config(toy, Path("model"), max_steps=10**6)
    values["run"] |= {"num_workers": 2, "checkpoint_steps": 5}
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    address = ray_cluster.get_runtime_context().gcs_address
    step = 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with subprocess.Popen(
            [sys.executable, "-m", "jobs.pretrain", "--config", "config.yaml", "--json"],
            cwd=tmp_path,
            env={**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            while newest_step(tmp_path / "model.training") <= step:
                assert running.poll() is None, running.communicate()
                time.sleep(0.05)
            step = newest_step(tmp_path / "model.training")
            running.send_signal(number)
            output, log = running.communicate(timeout=240)
        assert running.returncode == code, log
        assert json.loads(output)["status"] == "interrupted"
        assert "Traceback" not in log
        last = newest_step(tmp_path / "model.training")
        assert f"stopped after step {last}; the same command goes on from there" in log
        assert last >= step
        step = last
    assert not (tmp_path / "model").exists()
    config = config_of(toy, tmp_path / "model", max_steps=step + 1, num_evaluations=1)
    prepared = prepare(config)
    record = finish(prepared, train_here(prepared.task, silent))
    assert [crew["num_workers"] for crew in record["workers"]] == [2, 1]
    assert list(losses_of(config)) == list(range(1, step + 2))


class InterruptAt(logging.Handler):
    """Ctrl-C as soon as a message is logged."""

    def __init__(self, message):
        super().__init__()
        self.message, self.heard = message, []

    def emit(self, record):
        if self.message in record.getMessage():
            self.heard.append(record.getMessage())
            os.kill(os.getpid(), signal.SIGINT)


def test_a_training_without_room_says_so_and_can_be_stopped(toy, tmp_path):
    config = config_of(toy, tmp_path / "model", run={"num_workers": 6})
    task = prepare(config).task
    handler = InterruptAt("waiting for room")
    logging.getLogger("pipeline").addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train_on_ray(task, silent)
    finally:
        logging.getLogger("pipeline").removeHandler(handler)
    assert "the training asks for 6 workers with 1 CPU each" in handler.heard[0]
    assert "the 1 nodes of the cluster have 4 CPU" in handler.heard[0]


def test_room_that_others_hold_is_not_waited_for_where_fewer_workers_may_train(
    ray_cluster, toy, tmp_path
):
    # Workers of two processors each: what an earlier test's processes hold still, or let go
    # meanwhile, makes no second one possible.
    run = {"num_workers": 2, "min_workers": 1, "num_threads": 2}
    config = config_of(toy, tmp_path / "model", run=run, max_steps=3)
    task = prepare(config).task
    others = placement_group([{"CPU": 1}])
    try:
        assert others.wait(60)
        end = train_on_ray(task, silent)
    finally:
        remove_placement_group(others)
    assert end.crews == (CrewSpan(0, 1),)


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
