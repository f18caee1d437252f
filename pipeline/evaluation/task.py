"""What a task is and what it gives back. Knows no task, and no vectors' meaning.

A task reads its files when it is made, takes vectors of whatever systems it is given, and returns
tables of scores item by item; intervals and verdicts are made of them elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pipeline.evaluation.bilms import TrainedBilm
from pipeline.evaluation.mix import LearnedMix
from pipeline.evaluation.scores import Row, Statistic
from pipeline.evaluation.systems import System, Vectors

LEARNED_MIX = "learned mix"


@dataclass(frozen=True)
class Table:
    """The lines of one measure, such as nDCG@10."""

    metric: str
    rows: list[Row]


@dataclass(frozen=True)
class Outcome:
    """What a task found: its tables, the number of test items, and what a reader must know."""

    tables: list[Table]
    num_items: int
    notes: list[str] = field(default_factory=list)
    mix: LearnedMix | None = None


class Task(Protocol):
    """One labelled set and the way it is scored."""

    @property
    def kind(self) -> str:
        """The family of tasks that it belongs to, such as `retrieval`."""
        ...

    def measure(self, systems: Sequence[System]) -> Outcome:
        """Take vectors of all systems and score them."""
        ...


TakeVectors = Callable[[System], list[Vectors]]
Scored = TypeVar("Scored")
LearnMix = Callable[[TrainedBilm], LearnedMix]


def lines_of(
    systems: Sequence[System],
    take: TakeVectors,
    score: Callable[[Vectors], Scored],
    learn: LearnMix | None = None,
) -> tuple[list[Vectors], list[Scored], LearnedMix | None]:
    """Score the lines of all systems, the learned mix of the measured model's layers after its own.

    The vectors of a system are let go before those of the next one are made.

    Args:
        systems: in the order of the table.
        take: asks one system for its vectors.
        score: what is to be kept of a line.
        learn: learns a mix of `TrainedBilm.layers` from training items; None where there are none.

    Returns: the lines without their vectors, what was kept of each, and the mix.
    """
    lines: list[Vectors] = []
    scored: list[Scored] = []
    mix: LearnedMix | None = None
    for system in systems:
        found = take(system)
        if learn is not None and isinstance(system, TrainedBilm):
            mix = learn(system)
            found.append(Vectors(LEARNED_MIX, "model", mix.apply(system.layers)))
        while found:
            line = found.pop(0)
            scored.append(score(line))
            lines.append(Vectors(line.name, line.group, None))
            del line
    return lines, scored, mix


def table(metric: str, lines: Sequence[Vectors], statistics: Sequence[Statistic]) -> Table:
    """One table: a statistic for each line."""
    rows = [
        Row(line.name, line.group, statistic)
        for line, statistic in zip(lines, statistics, strict=True)
    ]
    return Table(metric, rows)
