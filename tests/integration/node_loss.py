"""A program: runs on a Ray of three nodes, of which one vanishes in the middle. Writes JSON.

It is a process of its own because another Ray may be joined in the process of the tests. A folder
is the one argument. What it says is for `test_node_loss.py`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
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
from pipeline.config import EmbedConfig, build
from pipeline.errors import PipelineError
from pipeline.run import RunReport, execute, prepare
from tests.integration.history import History
from tests.integration.invariants import check_rows
from tests.integration.nightly_driver import CountingBackend, num_embedded
from tests.integration.nights import DOCUMENTS_PER_TASK, values
from tests.integration.stand_in import WordBackend

SECONDS_PER_DOCUMENT = 0.02
NUM_IN_LARGE_CORPUS = 8000
HEAD = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
NODE = {"num_cpus": 2, "object_store_memory": 100 << 20}


def main(folder: Path) -> dict[str, Any]:
    """Three runs: a node is lost while actors embed, after the plan, and at some time during it."""
    with tempfile.TemporaryDirectory(prefix="rn", dir="/tmp") as directory:
        head = {**HEAD, "temp_dir": directory}
        cluster = start_here(lambda: Cluster(initialize_head=True, head_node_args=head))
        try:
            nodes = [cluster.add_node(**NODE) for _ in range(2)]
            ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)

            def lose(number: int) -> None:
                cluster.remove_node(nodes[number], allow_graceful=False)

            result = {"embed": _lost_while_embedding(folder, lambda: lose(0))}
            nodes.append(cluster.add_node(**NODE))
            result["plan"] = _lost_around_the_plan(
                folder, lambda: lose(1), lambda: lose(2), cluster
            )
            return result
        finally:
            ray.shutdown()
            cluster.shutdown()


def _lost_while_embedding(folder: Path, lose: Callable[[], None]) -> dict[str, Any]:
    """The third block that is done takes a node with it."""
    history = History(folder / "corpus", seed=21, num_documents=120)
    url = str(folder / "vectors")
    backend = CountingBackend(str(folder / "embedded.log"), SECONDS_PER_DOCUMENT)
    config = _config(history, url, DOCUMENTS_PER_TASK)
    night = history.next_night()
    blocks: list[int] = []

    def progress(*counts: int) -> None:
        blocks.append(1)
        if len(blocks) == 3:
            lose()

    outcome = _outcome(lambda: execute(prepare(config, backend=backend), progress))
    check_rows(url, "document", night.documents)
    outcome["redone"] = num_embedded(folder / "embedded.log") - len(night.documents)
    return outcome


def _lost_around_the_plan(
    folder: Path, after_plan: Callable[[], None], in_plan: Callable[[], None], cluster: Cluster
) -> list[dict[str, Any]]:
    """Tables of the plan are too large to travel with their refs: some are on the lost node."""
    history = History(folder / "large", seed=22, num_documents=NUM_IN_LARGE_CORPUS)
    url = str(folder / "large-vectors")
    config = _config(history, url, NUM_IN_LARGE_CORPUS // 8)

    def run_after_loss() -> RunReport:
        prepared = prepare(config, backend=WordBackend())
        after_plan()
        return execute(prepared)

    outcomes = []
    for number in (1, 2):
        night = history.next_night(busyness=0.05)
        if number == 1:
            outcome = _outcome(run_after_loss)
            cluster.add_node(**NODE)
        else:
            timer = threading.Timer(0.3, in_plan)
            timer.start()
            outcome = _outcome(lambda: execute(prepare(config, backend=WordBackend())))
            timer.join()
        if "error" in outcome:
            outcome["again"] = _outcome(lambda: execute(prepare(config, backend=WordBackend())))
        check_rows(url, "document", night.documents)
        outcomes.append(outcome)
    return outcomes


def _config(history: History, url: str, documents_per_task: int) -> EmbedConfig:
    settings = values(history.folder, url)
    settings["run"] |= {
        "num_actors": 4,
        "no_progress_timeout_s": 90,
        "documents_per_task": documents_per_task,
    }
    return build(EmbedConfig, settings, "test")


def _outcome(run: Callable[[], RunReport]) -> dict[str, Any]:
    started = time.monotonic()
    try:
        report = run()
    except PipelineError as error:
        return {"error": type(error).__name__, "message": str(error)}
    assert report.snapshot is not None
    return {"snapshot": report.snapshot.number, "seconds": round(time.monotonic() - started, 1)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
