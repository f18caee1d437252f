"""Merge a stream of parts early, a few at a time, so that few of them are held at once.

Knows no Ray and nothing of the parts: what merges them may run elsewhere and return a promise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

FAN_IN = 8

T = TypeVar("T")


class MergeTree(Generic[T]):
    """The parts that are not merged yet; after N of them it holds less than 8 log8(8 N).

    A part is merged with parts that took as many others, so each takes part in log8(N) merges.
    """

    def __init__(self, merge: Callable[..., T], fan_in: int = FAN_IN) -> None:
        """Start without parts.

        Args:
            merge: makes one part of `fan_in` parts.
            fan_in: at least 2.
        """
        self._merge = merge
        self._fan_in = fan_in
        self._levels: list[list[T]] = []

    def add(self, part: T) -> None:
        """Take one more part."""
        for level in self._levels:
            level.append(part)
            if len(level) < self._fan_in:
                return
            part = self._merge(*level)
            level.clear()
        self._levels.append([part])

    def parts(self) -> list[T]:
        """What is held; together it is all that was added."""
        return [part for level in self._levels for part in level]
