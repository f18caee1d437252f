"""A program: one training by one to three workers on a Ray whose nodes come and go. Writes JSON.

The head holds the driver and one worker, each further node one. It begins on two nodes, one of
them is lost for good while it trains, two others join later, and a signal ends it. It is a process
of its own because another Ray may be joined in the process of the tests. A folder is the one
argument; what it says is for `test_elastic_workers.py`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Nodes that are gone are noticed within seconds; Ray reads these when it is imported.
os.environ |= {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
}

import ray
from ray.cluster_utils import Cluster

from pipeline.cluster import start_here
from pipeline.config import build
from pipeline.errors import ClusterError
from pipeline.pretraining.config import PretrainConfig
from pipeline.pretraining.loop import TrainingTask
from pipeline.pretraining.ray_text import hosts_without
from pipeline.pretraining.ray_train import train_on_ray
from pipeline.pretraining.run import prepare
from tests.pipeline.toy_corpus import toy_config, write_toy_corpus

MEMORY = {"object_store_memory": 100 << 20}
GROW_INTERVAL_S = 1.0


class Heard(logging.Handler):
    """Keeps what the driver logs."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.lines.append(record.getMessage())


def main(folder: Path) -> dict[str, Any]:
    """Refuse what can never fit, then train through a loss and a gain of nodes."""
    heard = Heard()
    logging.getLogger("pipeline").addHandler(heard)
    logging.getLogger("pipeline").setLevel(logging.INFO)
    config = elastic_config(folder)
    with tempfile.TemporaryDirectory(prefix="re", dir="/tmp") as directory:
        head = {"num_cpus": 1, **MEMORY, "include_dashboard": False, "temp_dir": directory}
        cluster = start_here(lambda: Cluster(initialize_head=True, head_node_args=head))
        try:
            ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
            # As relative as a user may write it; workers run in other directories.
            os.chdir(folder)
            prepared = prepare(config)
            result: dict[str, Any] = {"refused": refused(prepared.task)}
            node = cluster.add_node(num_cpus=1, **MEMORY)
            result["hosts"] = [hosts_without(__file__), hosts_without("/no/such/file")]
            changes = Changes(
                folder / "model.training",
                [
                    (2, lambda: cluster.remove_node(node, allow_graceful=False)),
                    (1, lambda: add_nodes(cluster, 2)),
                    (3, lambda: os.kill(os.getpid(), signal.SIGTERM)),
                ],
            )
            try:
                train_on_ray(prepared.task, changes.look, grow_interval_s=GROW_INTERVAL_S)
            except SystemExit as stop:
                result["stopped"] = stop.code
            result |= {"changed_at": changes.steps, "heard": heard.lines}
            return result
        finally:
            ray.shutdown()
            cluster.shutdown()


def add_nodes(cluster: Cluster, number: int) -> None:
    """Add nodes of one processor; adding them, Ray would take the program's SIGTERM for itself."""
    handler = signal.getsignal(signal.SIGTERM)
    for _ in range(number):
        cluster.add_node(num_cpus=1, **MEMORY)
    signal.signal(signal.SIGTERM, handler)


class Changes:
    """What happens to the cluster, each once so many workers have written a checkpoint.

    Called as progress, and so in the main thread, in which alone Ray adds nodes.
    """

    def __init__(self, work: Path, changes: list[tuple[int, Callable[[], object]]]) -> None:
        """Make these changes, one after another, each when that many workers train."""
        self._work, self._changes = work, changes
        self.steps: list[int] = []

    def look(self, *progress: object) -> None:
        """Make the next change if it is time."""
        step, num_workers = self._newest()
        if self._changes and num_workers == self._changes[0][0]:
            self.steps.append(step)
            self._changes.pop(0)[1]()

    def _newest(self) -> tuple[int, int]:
        records = sorted(self._work.glob("checkpoints/*/checkpoint.json"))
        # The newest may be removed meanwhile.
        with contextlib.suppress(FileNotFoundError, IndexError):
            content = json.loads(records[-1].read_text())
            return content["step"], content["record"]["crews"][-1]["num_workers"]
        return 0, 0


def elastic_config(folder: Path, max_steps: int = 10**6, num_workers: int = 3) -> PretrainConfig:
    """The configuration of the training, in a relative directory."""
    toy = write_toy_corpus(folder / "corpus.jsonl")
    values = toy_config(
        toy, Path("model"), max_steps=max_steps, num_evaluations=1, learning_rate_decay="none"
    )
    values["run"] |= {
        "num_workers": num_workers,
        "min_workers": min(num_workers, 1) or None,
        # A checkpoint takes as long as many steps: so there are not too many steps to compare.
        "checkpoint_steps": 2,
        "checkpoint_interval_s": None,
        "max_failures": 2,
    }
    return build(PretrainConfig, values, "test")


def refused(task: TrainingTask) -> str:
    """What is said where two workers are the least and one node with one processor is there."""
    run = task.config.run.model_copy(update={"min_workers": 2, "room_timeout_s": 0.5})
    config = task.config.model_copy(update={"run": run})
    try:
        train_on_ray(TrainingTask(**{**vars(task), "config": config}), lambda *progress: None)
    except ClusterError as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
