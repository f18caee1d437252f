"""Train on a cluster: as many workers of Ray Train as find room, started again if one dies.

Each start of the workers begins with the newest checkpoint, which holds the place in the text; of
Ray's own checkpoints and data splitting, which begin with the first row again, nothing is used. Nor
are its retries and its elastic workers: they count what the nodes have, not what is free on them,
wait in silence, and end workers without a checkpoint.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

# Ray reads this when it is imported: no table of metrics is printed.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_METRICS", "0")

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, TrainingFailedError

from elmo_model import errors as model_errors
from elmo_model.errors import ElmoError
from pipeline import errors
from pipeline.cluster import ray_errors
from pipeline.errors import ClusterError, PipelineError, StorageError
from pipeline.pretraining.board import Caller, View, new_board
from pipeline.pretraining.crew import DistributedCrew
from pipeline.pretraining.loop import OnProgress, TrainingEnd, TrainingTask, train
from pipeline.pretraining.room import Growth, Places, RoomSearch
from pipeline.pretraining.stop import stop_signals, stopped

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.2
# The workers start again for more of them only after so long: each start costs some seconds.
GROW_INTERVAL_S = 60.0
# A worker that has not called for so long is taken for dead by a driver that waits for its end.
SILENCE_S = 30.0


def train_on_ray(
    task: TrainingTask, on_progress: OnProgress, grow_interval_s: float = GROW_INTERVAL_S
) -> TrainingEnd:
    """Train with the configured workers of the cluster; a signal ends it with a checkpoint.

    Args:
        task: the same for every worker.
        on_progress: called in this thread.
        grow_interval_s: how long fewer workers than are wanted train before more may join.

    Raises:
        KeyboardInterrupt: stopped by Ctrl-C.
        SystemExit: stopped by SIGTERM.
        ElmoError: the training diverged; checkpoints stay.
        ClusterError: there is no room, or workers died more often than `run.max_failures` allows.
        PipelineError: what a worker raised.
    """
    with stop_signals() as received, ray_errors():
        return _Driver(task, on_progress, grow_interval_s, received).run()


class _Driver:
    def __init__(
        self,
        task: TrainingTask,
        on_progress: OnProgress,
        grow_interval_s: float,
        received: list[int],
    ) -> None:
        self._task, self._on_progress, self._received = _absolute(task), on_progress, received
        self._grow_interval_s = grow_interval_s
        self._run = self._task.config.run
        self._most = self._run.num_workers
        self._resources: dict[str, float] = {"CPU": self._run.num_threads or 1}
        if self._run.gpus_per_worker:
            self._resources["GPU"] = self._run.gpus_per_worker
        self._failures = 0

    def run(self) -> TrainingEnd:
        """Start workers until a training ends."""
        while True:
            ended = self._train(self._find_room())
            if isinstance(ended, TrainingFailedError):
                self._failed(ended)
            elif ended.is_done:
                return ended
            elif self._received:
                stopped(self._received, f"after step {ended.step}")

    def _find_room(self) -> int:
        """Wait for room; the number of workers that find it."""
        least = self._run.min_workers or self._most
        search = RoomSearch(self._resources, least, self._most, self._run.room_timeout_s)
        places = Places(self._resources, self._most)
        try:
            while True:
                if self._received:
                    stopped(self._received, "while no worker trained")
                answer = search.answer(places.num_found())
                if answer is not None:
                    return answer
                time.sleep(POLL_INTERVAL_S)
        finally:
            places.release()

    def _train(self, num_workers: int) -> TrainingEnd | TrainingFailedError:
        """Let so many workers train until they end, die, or make room for more of them."""
        board = new_board()
        attempt = _Attempt(self._trainer(num_workers, board))
        growth = Growth(self._resources, self._most - num_workers, self._grow_interval_s)
        is_told = False
        try:
            while not attempt.wait(POLL_INTERVAL_S):
                view: View = ray.get(board.view.remote())
                trains = view.silent_s is not None
                if view.progress is not None:
                    self._on_progress(*view.progress)
                if self._received and self._has_stopped(view):
                    break
                if not is_told and (self._received or (trains and growth.is_due())):
                    is_told = True
                    ray.get(board.stop.remote())
        finally:
            growth.release()
        view = ray.get(board.view.remote())
        if not self._received:  # Otherwise workers may be about to end, and call once more.
            ray.kill(board)
        if attempt.error is not None:
            return attempt.error
        if view.progress is not None:
            self._on_progress(*view.progress)
        if isinstance(view.outcome, TrainingEnd):
            return view.outcome
        assert view.outcome is not None, "workers that end without an error say how"
        raise _error(*view.outcome)

    def _has_stopped(self, view: View) -> bool:
        """Whether a training that was told to stop has, so that Ray's own end is not waited for.

        Raises:
            KeyboardInterrupt, SystemExit: no worker is there that would.
        """
        if view.outcome is None and (view.silent_s is None or view.silent_s > SILENCE_S):
            stopped(self._received, "while no worker trained")
        return view.outcome is not None

    def _trainer(self, num_workers: int, board: Any) -> Callable[[], object]:
        def fit() -> object:
            with tempfile.TemporaryDirectory(prefix="elmo-ray-train-") as folder:
                trainer = TorchTrainer(
                    _work,
                    train_loop_config={"task": self._task, "board": board},
                    scaling_config=ScalingConfig(
                        num_workers=num_workers,
                        use_gpu=self._run.gpus_per_worker > 0,
                        resources_per_worker=self._resources,
                    ),
                    run_config=RunConfig(
                        # Ray writes a mark there and, without checkpoints of its own, no more.
                        storage_path=folder,
                        failure_config=FailureConfig(
                            max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                        ),
                    ),
                )
                return trainer.fit()

        return fit

    def _failed(self, error: TrainingFailedError) -> None:
        """Count a failure; return if the workers shall start again.

        Raises:
            PipelineError, ElmoError: what a worker raised, or how often workers died.
        """
        if self._received:
            stopped(self._received, "while no worker trained")
        cause = error.controller_failure if isinstance(error, ControllerError) else error
        if isinstance(cause, WorkerGroupStartupTimeoutError | PreemptionError):
            # Nobody's fault: others were quicker, or a node was told to go.
            log.warning("the workers did not get or keep their places, and look for others")
            return
        self._failures += 1
        ours = _ours(error)
        if ours is not None and not isinstance(ours, StorageError):
            raise ours
        if self._failures > self._run.max_failures:
            raise ours or ClusterError(
                f"the workers of the training failed {self._failures} times, the last time with: "
                f"{_last_line(_first_cause(error))}. Checkpoints stay: the same command goes on "
                "from there"
            )
        log.warning(
            "workers failed (%d of %d times that run.max_failures allows) and start again at the "
            "newest checkpoint: %s",
            self._failures,
            self._run.max_failures,
            _last_line(ours or _first_cause(error)),
        )


class _Attempt:
    """One start of the workers, in a thread: the driver's own is left to signals."""

    def __init__(self, fit: Callable[[], object]) -> None:
        self.error: TrainingFailedError | None = None
        self._other: BaseException | None = None
        self._fit = fit
        self._ended = threading.Event()
        threading.Thread(target=self._work, name="training-workers", daemon=True).start()

    def _work(self) -> None:
        try:
            self._fit()
        except TrainingFailedError as error:
            self.error = error
        except BaseException as error:
            self._other = error
        self._ended.set()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, after at most so many seconds."""
        has_ended = self._ended.wait(timeout_s)
        if self._other is not None:
            raise self._other
        return has_ended


def _work(config: dict[str, Any]) -> None:
    """What each worker runs."""
    task, board = config["task"], config["board"]
    crew = DistributedCrew()
    caller = Caller(board)
    try:
        with caller.calling() if crew.rank == 0 else nullcontext():
            end = train(task, crew, get_device(), caller.note, caller.shall_stop)
    except ElmoError as error:
        # All workers meet it at the same step, and would again.
        ray.get(board.finish.remote((type(error).__name__, str(error))))
        return
    if crew.rank == 0:
        ray.get(board.finish.remote(end))


def _absolute(task: TrainingTask) -> TrainingTask:
    """The task for workers, which run in other directories than this process."""
    directory = task.config.run.tensorboard_directory
    if directory is None:
        return task
    path = str(Path(directory).expanduser().absolute())
    run = task.config.run.model_copy(update={"tensorboard_directory": path})
    return replace(task, config=task.config.model_copy(update={"run": run}))


def _causes(error: TrainingFailedError) -> list[BaseException]:
    causes: dict[int, BaseException] = getattr(error, "worker_failures", {})
    return list(causes.values())


def _first_cause(error: TrainingFailedError) -> BaseException:
    return next(iter(_causes(error)), error)


def _ours(error: TrainingFailedError) -> PipelineError | ElmoError | None:
    """The error of ours that a worker raised; the others' are that they lost it."""
    for cause in _causes(error):
        inner = getattr(cause, "cause", None) or cause.__cause__ or cause
        if isinstance(inner, PipelineError | ElmoError):
            return inner
    return None


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _error(name: str, message: str) -> Exception:
    for module in (errors, model_errors):
        kind = getattr(module, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            return kind(message)
    return ElmoError(message)
