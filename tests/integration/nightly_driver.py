"""One nightly run in a process of its own, which dies by SIGKILL at a chosen moment if told so.

The process joins a Ray that runs already. Its deaths are real; only the moment is chosen, by
watching what it asks of the store. Models of the run count what they embed in a file that outlives
all attempts.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline.config import EmbedConfig, build
from pipeline.errors import PipelineError
from pipeline.known import read_known
from pipeline.run import execute, prepare, run_to_commit
from pipeline.snapshot.run_record import RunRecord, recorded_runs
from pipeline.storage import Storage, open_storage
from tests.integration.stand_in import WordBackend, WordLoader, WordModel

# Moments at which a driver can be told to die: what it asks of the store, and when.
MOMENTS = {
    "before the plan": ("put_if_absent", "_probe", "before"),
    "after the run is recorded": ("put_if_absent", "_runs/", "after"),
    "before the commit": ("put_if_absent", "_snapshots/", "before"),
    "after the commit": ("put_if_absent", "_snapshots/", "after"),
    "while records are deleted": ("delete", "_runs/", "after"),
}
# Chosen by the progress of the run instead.
FIRST_FILES = "after the first data files"


@dataclass(frozen=True)
class Attempt:
    """What a driver is told: `values` is its configuration, `folder` where it leaves its traces."""

    values: Mapping[str, Any]
    folder: Path
    address: str
    seconds_per_document: float = 0.0
    die: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def result(self) -> Path:
        """Where the driver says what it did; absent if it died."""
        return self.folder / "result.json"


class CountingModel(WordModel):
    """Takes its time, and writes down how many documents it has embedded."""

    def __init__(self, level: str, log: str, seconds_per_document: float) -> None:
        super().__init__(level)
        self._log = log
        self._seconds_per_document = seconds_per_document

    def vectors(self, window: Any) -> Any:
        num_documents = len(window.sentences_per_document)
        time.sleep(self._seconds_per_document * num_documents)
        descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, b"%d\n" % num_documents)
        finally:
            os.close(descriptor)
        return super().vectors(window)


@dataclass(frozen=True)
class CountingLoader(WordLoader):
    """Makes the counting model in an actor's process."""

    level: str
    log: str
    seconds_per_document: float

    def __call__(self) -> CountingModel:
        return CountingModel(self.level, self.log, self.seconds_per_document)


@dataclass(frozen=True)
class CountingBackend(WordBackend):
    """The stand-in for ELMo with a model that counts."""

    log: str
    seconds_per_document: float = 0.0

    def loader(self, config: EmbedConfig, num_threads: int) -> CountingLoader:
        return CountingLoader(config.vectors.level, self.log, self.seconds_per_document)


def num_embedded(log: Path) -> int:
    """Documents that all attempts have embedded so far, those of killed ones included."""
    return sum(map(int, log.read_text().split())) if log.exists() else 0


def start(attempt: Attempt) -> BaseProcess:
    """Start a driver; it is forked from a server that has imported what takes time, but not Ray.

    Processes that are forked with Ray share the state of its generator of random ids.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pyarrow.dataset", "pyarrow.parquet", "pipeline.storage"])
    attempt.result.unlink(missing_ok=True)
    process = context.Process(target=run, args=(attempt, dict(os.environ)))
    process.start()
    return process


def recorded_ids(url: str) -> set[str]:
    """Ids of the documents in files that runs have recorded and not yet committed for good."""
    storage = open_storage(url)
    files = {file for run in recorded_runs(storage) for file in RunRecord(storage, run).files()}
    return {id_ for file in files for id_ in read_known(storage, file.path)["id"].to_pylist()}


def finish(attempt: Attempt, process: BaseProcess, timeout_s: float = 120) -> dict[str, Any]:
    """Wait for a driver; returns what it did (see `run`), or its error.

    Raises:
        AssertionError: it left no result, although nobody killed it.
    """
    process.join(timeout_s)
    assert process.exitcode == 0, f"the driver ended with {process.exitcode}"
    result: dict[str, Any] = json.loads(attempt.result.read_text())
    return result


def run(attempt: Attempt, environment: Mapping[str, str]) -> None:
    """What the process does: one run, whose outcome goes to `attempt.result`."""
    # The server keeps the environment of its start.
    os.environ.clear()
    os.environ.update({**environment, **attempt.variables, "RAY_ADDRESS": attempt.address})
    if attempt.variables:
        # Workers are children of the cluster and not of this process.
        import ray

        runtime_env = {"env_vars": dict(attempt.variables)}
        ray.init(logging_level="ERROR", log_to_driver=False, runtime_env=runtime_env)
    if attempt.die in MOMENTS:
        _die_at(*MOMENTS[attempt.die])
    config = build(EmbedConfig, attempt.values, "test")
    log = attempt.folder / "embedded.log"
    backend = CountingBackend(str(log), attempt.seconds_per_document)
    progress = _die if attempt.die == FIRST_FILES else None
    result: dict[str, Any]
    try:
        prepared, report = run_to_commit(
            lambda: prepare(config, backend=backend), lambda run: execute(run, progress)
        )
        result = {
            "snapshot": report.snapshot and report.snapshot.number,
            "is_repeat": prepared.is_repeat,
            **asdict(report.accounting),
        }
    except PipelineError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    partial = attempt.result.with_suffix(".partial")
    partial.write_text(json.dumps(result))
    partial.rename(attempt.result)


def _die(*progress: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at(method: str, prefix: str, when: str) -> None:
    """Let the process die around the first call of a method of the store for such a path."""
    original: Callable[..., Any] = getattr(Storage, method)

    def dying(storage: Storage, path: str, *arguments: Any) -> Any:
        if not path.startswith(prefix):
            return original(storage, path, *arguments)
        if when == "before":
            _die()
        with contextlib.ExitStack() as stack:
            stack.callback(_die)
            return original(storage, path, *arguments)

    setattr(Storage, method, dying)
