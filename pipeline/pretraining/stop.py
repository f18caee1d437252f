"""Signals that ask a training to end after its step, with a checkpoint. Knows no training."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

log = logging.getLogger(__name__)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """The numbers of the signals that asked for an end so far.

    A second one of them is not held back any more. What the process ignores, as background commands
    of a script do Ctrl-C, it goes on to ignore. In another thread than the first of the process,
    signals are not this module's, and the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (int(signal.SIGINT), int(signal.SIGTERM))
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: kind for number, kind in before.items() if kind is not signal.SIG_IGN}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[number] or signal.SIG_DFL)

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def stopped(received: Sequence[int], where: str) -> NoReturn:
    """End a training that signals have stopped, as they would have ended the process.

    Raises:
        KeyboardInterrupt: stopped by Ctrl-C.
        SystemExit: stopped by SIGTERM.
    """
    log.warning("stopped %s; the same command goes on from there", where)
    if received[0] == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + received[0])
