"""Run an iterator ahead in a thread, so that its work overlaps with that of who reads it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

_POLL_S = 0.1


class Prefetched(Generic[Item]):
    """Up to `depth` items made ahead; `waited_s` is how long the reader had to wait for them."""

    def __init__(self, items: Iterator[Item], depth: int = 4) -> None:
        """Start reading `items`; an error of theirs is raised where its item would have come."""
        self.waited_s = 0.0
        self._ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(items,), name="prefetch", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Prefetched[Item]:
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        try:
            # What is there is not waited for, however long this thread then waits for a processor.
            item, error = self._ready.get_nowait()
        except queue.Empty:
            started = time.monotonic()
            item, error = self._ready.get()
            self.waited_s += time.monotonic() - started
        if error is not None:
            self._closed.set()
            raise error
        assert item is not None
        return item

    def _run(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:  # raised again in the reader's thread
            self._put((None, error))

    def _put(self, entry: tuple[Item | None, BaseException | None]) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(entry, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False
