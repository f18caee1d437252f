"""One line that says how far a run is: done of total, tokens/s, time left. Knows no Ray or job.

On a terminal the line is redrawn in place; elsewhere (a log file, `ray job logs`) a plain line is
written every `interval_s`. The rate is that of the last minute, so that the slow start of a cluster
does not spoil the estimate.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from pipeline.units import format_duration

REDRAW_S = 0.2
RATE_WINDOW_S = 60.0
_CLEAR_LINE = "\r\x1b[K"


class Progress:
    """Reports progress on a stream; use as a context manager, or call `close` at the end."""

    def __init__(
        self,
        total: int | None,
        *,
        unit: str = "documents",
        stream: TextIO | None = None,
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        quiet: bool = False,
        with_rate: bool = True,
    ) -> None:
        """Start the clock; nothing is written before the first update.

        Args:
            total: how many units there are; None when that is unknown, then no ETA is given.
            unit: what is counted, in the plural.
            stream: where to write, standard error by default.
            interval_s: seconds between two lines where the stream is not a terminal.
            clock: monotonic seconds.
            quiet: write nothing at all.
            with_rate: show the rate and the time left; False where the notes have them.
        """
        self._total = total
        self._unit = unit
        self._stream = sys.stderr if stream is None else stream
        self._in_place = self._stream.isatty()
        self._pause_s = REDRAW_S if self._in_place else interval_s
        self._clock = clock
        self._quiet = quiet
        self._with_rate = with_rate
        self._start_s = clock()
        self._next_s = self._start_s + (0.0 if self._in_place else min(1.0, interval_s))
        self._history: deque[tuple[float, int, int]] = deque([(self._start_s, 0, 0)])
        self._note = ""
        self._closed = False

    def __enter__(self) -> Progress:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the last line."""
        self.close()

    def update(self, done: int, tokens: int = 0, note: str = "") -> None:
        """Say how much is done by now, as totals since the start.

        Args:
            done: units done.
            tokens: tokens done; 0 leaves out the rate in tokens.
            note: more to show at the end of the line, such as a loss.
        """
        now_s = self._clock()
        self._history.append((now_s, done, tokens))
        while len(self._history) > 2 and self._history[1][0] <= now_s - RATE_WINDOW_S:
            self._history.popleft()
        self._note = note
        complete = self._total is not None and done >= self._total
        # In a file, the last line of all follows at once.
        if now_s >= self._next_s and (self._in_place or not complete):
            self._next_s = now_s + self._pause_s
            self._write(self.line())

    def close(self) -> None:
        """Write a last line with the rate of the whole run; later calls do nothing."""
        if not self._closed:
            self._closed = True
            end_s, done, tokens = self._history[-1]
            self._history = deque([(self._start_s, 0, 0), (end_s, done, tokens)])
            self._write(self.line(), last=True)

    def line(self) -> str:
        """Return the text that describes the present state, without a line end."""
        now_s = self._clock()
        first_s, first_done, first_tokens = self._history[0]
        last_s, done, tokens = self._history[-1]
        elapsed_s, window_s = now_s - self._start_s, max(last_s - first_s, 1e-9)
        parts = [f"{done:,}{'' if self._total is None else f'/{self._total:,}'} {self._unit}"]
        if self._total:
            parts.append(f"{min(done / self._total, 1.0):.0%}")
        if tokens and self._with_rate:
            parts.append(f"{(tokens - first_tokens) / window_s:,.0f} tokens/s")
        elif done and self._with_rate:
            parts.append(f"{(done - first_done) / window_s:,.0f} {self._unit}/s")
        rate = (done - first_done) / window_s
        if self._with_rate and self._total is not None and rate > 0 and done < self._total:
            left_s = (self._total - done) / rate - (now_s - last_s)
            parts.append(f"ETA {format_duration(max(left_s, 0.0))}")
        parts.append(f"elapsed {format_duration(elapsed_s)}")
        return "  ".join([*parts, *([self._note] if self._note else [])])

    def _write(self, line: str, last: bool = False) -> None:
        if self._quiet:
            return
        if self._in_place:
            columns = shutil.get_terminal_size().columns
            # The cursor stays at the start of the line: a log message then covers the progress.
            self._stream.write(f"{_CLEAR_LINE}{line[: columns - 1]}" + ("\n" if last else "\r"))
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()
