"""Threads that each work on one core. Knows no model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch

_num_workers: ContextVar[int] = ContextVar("num_workers", default=0)


class Workers:
    """Runs calls side by side, torch's operations within each on one thread.

    So no operation ends in a barrier of all threads, where one that is late would hold up the rest.
    """

    def __init__(self, num_threads: int) -> None:
        """Take the number of cores; the threads are started when they are first needed."""
        self.num_threads = num_threads
        self._pool: ThreadPoolExecutor | None = None

    def run_all(self, calls: Iterable[Callable[[], None]]) -> None:
        """Make all calls, in their order as far as there are threads; wait for them.

        Raises:
            Exception: what the first call that failed raised, after all have ended.
        """
        if self.num_threads == 1:
            for call in calls:
                call()
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(
                self.num_threads, "elmo-kernel", initializer=torch.set_num_threads, initargs=(1,)
            )
        futures = [self._pool.submit(call) for call in calls]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]


def shared_workers() -> Workers:
    """As many threads as torch has where it is called; made once for each number."""
    return _workers(_num_workers.get() or torch.get_num_threads())


@contextmanager
def workers_instead() -> Iterator[None]:
    """Within, torch's operations run on one thread, and `shared_workers` has all that torch had.

    Threads that torch has used wait for its next operation by asking for it all the time, for some
    milliseconds, on the cores that the workers need.
    """
    num_threads = torch.get_num_threads()
    token = _num_workers.set(_num_workers.get() or num_threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        _num_workers.reset(token)


def run_without_gradient(workers: Workers, calls: Iterable[Callable[[], None]]) -> None:
    """As `Workers.run_all`; a thread of its own records gradients unless it is told not to."""
    workers.run_all(partial(_without_gradient, call) for call in calls)


@torch.no_grad()
def _without_gradient(call: Callable[[], None]) -> None:
    call()


@functools.cache
def _workers(num_threads: int) -> Workers:
    return Workers(num_threads)
