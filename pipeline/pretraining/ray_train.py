"""Train on a cluster: Ray Train starts the workers, and starts them again if one dies.

Each run of the workers begins with the newest checkpoint, which holds the place in the text; of
Ray's own checkpoints and data splitting, which begin with the first row again, nothing is used.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Ray reads this when it is imported: no table of metrics is printed.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_METRICS", "0")

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2.api.exceptions import TrainingFailedError

from elmo_model import errors as model_errors
from elmo_model.errors import ElmoError
from pipeline import errors
from pipeline.errors import ClusterError, PipelineError
from pipeline.pretraining.crew import DistributedCrew
from pipeline.pretraining.loop import OnProgress, TrainingEnd, TrainingTask, train
from pipeline.storage import open_storage

REPORT_INTERVAL_S = 1.0
# Where Ray keeps what it knows of a run, within the work directory.
RAY_FOLDER = "ray"


def train_on_ray(task: TrainingTask, on_progress: OnProgress) -> TrainingEnd:
    """Train with the configured workers of the cluster.

    Raises:
        ElmoError: the training diverged; checkpoints stay.
        ClusterError: workers died more often than `run.max_failures` allows.
        PipelineError: what a worker raised.
    """
    run = task.config.run
    board = ray.remote(num_cpus=0)(_Board).remote()
    storage = open_storage(task.work)
    place: dict[str, Any] = {"storage_path": f"{storage.url}/{RAY_FOLDER}"}
    if not storage.is_local:
        place = {
            "storage_path": f"{storage.url.split('://', 1)[1]}/{RAY_FOLDER}",
            "storage_filesystem": storage.as_arrow_filesystem(),
        }
    threads = run.num_threads or 1
    num_workers: int | tuple[int, int] = run.num_workers
    if run.min_workers is not None and run.min_workers < run.num_workers:
        num_workers = (run.min_workers, run.num_workers)
    resources: dict[str, float] = {"CPU": threads}
    if run.gpus_per_worker:
        resources["GPU"] = run.gpus_per_worker
    trainer = TorchTrainer(
        _work,
        train_loop_config={"task": task, "board": board},
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=run.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=run.max_failures), **place),
    )
    try:
        with _progress(board, on_progress):
            trainer.fit()
        outcome = ray.get(board.outcome.remote())
    except TrainingFailedError as error:
        raise _failure(error, run.max_failures) from None
    finally:
        ray.kill(board)
    if isinstance(outcome, TrainingEnd):
        return outcome
    raise _error(*outcome)


def _work(config: dict[str, Any]) -> None:
    """What each worker runs."""
    task, board = config["task"], config["board"]
    crew = DistributedCrew()
    last_s = 0.0

    def note(steps: int, seconds: float, tokens: int, text: str) -> None:
        nonlocal last_s
        if seconds - last_s >= REPORT_INTERVAL_S or not steps:
            last_s = seconds
            board.note.remote((steps, seconds, tokens, text))

    try:
        end = train(task, crew, get_device(), note)
    except ElmoError as error:
        # All workers meet it at the same step, and would again.
        ray.get(board.finish.remote((type(error).__name__, str(error))))
        return
    if crew.rank == 0:
        ray.get(board.finish.remote(end))


class _Board:
    """What workers tell the driver: the first one's progress, and how the training ended.

    An actor, since workers are in other processes; Ray Train keeps nothing of what is reported
    without a checkpoint of its own.
    """

    def __init__(self) -> None:
        self._last: tuple[int, float, int, str] | None = None
        self._outcome: TrainingEnd | tuple[str, str] | None = None

    def note(self, progress: tuple[int, float, int, str]) -> None:
        self._last = progress

    def finish(self, outcome: TrainingEnd | tuple[str, str]) -> None:
        self._outcome = outcome

    def outcome(self) -> TrainingEnd | tuple[str, str] | None:
        return self._outcome

    def last(self) -> tuple[int, float, int, str] | None:
        return self._last


@contextmanager
def _progress(board: Any, on_progress: OnProgress) -> Iterator[None]:
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(REPORT_INTERVAL_S):
            last = ray.get(board.last.remote())
            if last is not None:
                on_progress(*last)

    thread = threading.Thread(target=look, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _failure(error: TrainingFailedError, max_failures: int) -> PipelineError | ElmoError:
    """What ended the training: the error of a worker as it was said, or that workers died."""
    causes: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for cause in causes.values():
        inner = getattr(cause, "cause", None) or cause.__cause__ or cause
        if isinstance(inner, PipelineError | ElmoError):
            return inner
    first = next((str(cause) for cause in causes.values()), str(error))
    lines = [line.strip() for line in first.splitlines() if line.strip()]
    return ClusterError(
        f"the workers of the training failed {max_failures + 1} times, the last time with: "
        f"{lines[-1][:300] if lines else type(error).__name__}. Checkpoints stay: the same command "
        "goes on from there"
    )


def _error(name: str, message: str) -> Exception:
    for module in (errors, model_errors):
        kind = getattr(module, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            return kind(message)
    return ElmoError(message)
