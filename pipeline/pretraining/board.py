"""What the driver of a training and its first worker tell each other.

An actor of the driver's node, since they are in different processes and a node with workers may be
lost. The worker calls it from a thread of its own, never from its steps; that it calls shows that
it lives. Each start of the workers has a new board, so that none hears of another's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.pretraining.loop import TrainingEnd

# How often the worker calls: so late may it hear that it is to stop.
CALL_INTERVAL_S = 0.5

Progress = tuple[int, float, int, str]
# How it ended: with a result, or with the class and the message of an error that all workers meet.
Outcome = TrainingEnd | tuple[str, str]


@dataclass(frozen=True)
class View:
    """What the driver sees; `silent_s` is None until the worker has called."""

    progress: Progress | None
    outcome: Outcome | None
    silent_s: float | None


class Board:
    """The actor's code."""

    def __init__(self) -> None:
        """Begin with nothing on it."""
        self._progress: Progress | None = None
        self._outcome: Outcome | None = None
        self._called: float | None = None
        self._shall_stop = False

    def call(self, progress: Progress | None) -> bool:
        """Of the worker: how far it is. Returns whether it shall stop after its step."""
        self._progress, self._called = progress, time.monotonic()
        return self._shall_stop

    def finish(self, outcome: Outcome) -> None:
        """Of a worker: how the training ended."""
        self._outcome = outcome

    def stop(self) -> None:
        """Of the driver: the workers shall stop after their step, with a checkpoint."""
        self._shall_stop = True

    def view(self) -> View:
        """Of the driver: what is known."""
        silent_s = None if self._called is None else time.monotonic() - self._called
        return View(self._progress, self._outcome, silent_s)


def new_board() -> Any:
    """Start a board on this node; its handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()


class Caller:
    """The first worker's side: its progress goes out, and the wish to stop comes in."""

    def __init__(self, board: Any) -> None:
        """Call `board`."""
        self._board = board
        self._progress: Progress | None = None
        self._shall_stop = threading.Event()
        self._ended = threading.Event()

    def note(self, steps: int, seconds: float, tokens: int, text: str) -> None:
        """Remember how far the training is, for the next call."""
        self._progress = (steps, seconds, tokens, text)

    def shall_stop(self) -> bool:
        """Whether the driver wants the training to stop."""
        return self._shall_stop.is_set()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Call until the block is left, and once more then."""
        thread = threading.Thread(target=self._call, name="training-board", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _call(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._ended.wait(CALL_INTERVAL_S)
            try:
                if ray.get(self._board.call.remote(self._progress)):
                    self._shall_stop.set()
            except RayError:
                # The driver is gone, and Ray ends its workers.
                return
