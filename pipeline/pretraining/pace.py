"""How fast a training goes by its own clock, and how long it still takes. Knows numbers only.

Its clock stands still while perplexity is measured and checkpoints are written. So does the rate;
the time left counts the measurements that are still to come.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

RATE_WINDOW_S = 60.0


@dataclass(frozen=True)
class Pace:
    """Tokens a second of late, and seconds until the end; None before there is a step."""

    tokens_per_s: float | None
    left_s: float | None


class PaceMeter:
    """Gives the pace of the last minute of training; at first that of the whole of it.

    A training that is gone on with so begins with the pace that it had before.
    """

    def __init__(self) -> None:
        """Start where no training has been yet."""
        self._history: deque[tuple[float, int, float]] = deque([(0.0, 0, 0.0)])

    def note(self, train_seconds: float, tokens: int, share_done: float) -> None:
        """Note how far a training is.

        Args:
            train_seconds: since its start, pauses not counted.
            tokens: since its start.
            share_done: of its steps or its time, whichever is more.
        """
        self._history.append((train_seconds, tokens, share_done))
        while len(self._history) > 2 and self._history[1][0] <= train_seconds - RATE_WINDOW_S:
            self._history.popleft()

    def pace(self, measurements_left: int, measurement_s: float) -> Pace:
        """The pace now.

        Args:
            measurements_left: that training will still wait for.
            measurement_s: what each of them takes.
        """
        first_s, first_tokens, first_share = self._history[0]
        last_s, tokens, share = self._history[-1]
        passed_s = last_s - first_s
        if passed_s <= 0 or share <= first_share or tokens <= first_tokens:
            return Pace(None, None)
        training_s = max(1 - share, 0.0) * passed_s / (share - first_share)
        left_s = training_s + max(measurements_left, 0) * measurement_s
        return Pace((tokens - first_tokens) / passed_s, left_s)
