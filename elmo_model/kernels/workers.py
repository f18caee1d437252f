"""Threads that each work on one core. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch


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
