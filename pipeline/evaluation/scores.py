"""Scores with bootstrap intervals, and whether two of them differ. Knows numbers only.

All rows of a table are resampled alike: item i is drawn for all of them or for none, so that a
difference has an interval of its own, far narrower than those of the two scores. What is resampled
are the test items; what another training set would have changed is not in the interval.

Axes: R resamples, N items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
_SEED = 2018
_CHUNK_ELEMENTS = 1 << 21

Group = Literal["baseline", "layer", "model", "other"]
Verdict = Literal["better", "worse", "none"]
Numbers = NDArray[np.float64]


class Statistic(Protocol):
    """A score of N items that can be computed again for a sample of them."""

    @property
    def num_items(self) -> int:
        """N."""
        ...

    def resampled(self, items_RN: NDArray[np.int64]) -> Numbers:
        """The score of each row of item numbers."""
        ...


@dataclass(frozen=True)
class Ratio:
    """Sum of numerators over sum of denominators: a mean, or the share of right tokens."""

    numerator_N: Numbers
    denominator_N: Numbers

    @classmethod
    def mean(cls, values_N: NDArray[np.generic]) -> Ratio:
        """The mean of the items."""
        values = np.asarray(values_N, np.float64)
        return cls(values, np.ones_like(values))

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.numerator_N)

    def resampled(self, items_RN: NDArray[np.int64]) -> Numbers:
        """The ratio of each sample."""
        sums_R: Numbers = self.numerator_N[items_RN].sum(axis=1)
        sums_R /= self.denominator_N[items_RN].sum(axis=1)
        return sums_R


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho between predictions and gold scores; 0 where one of them does not vary."""

    predicted_N: Numbers
    gold_N: Numbers

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.gold_N)

    def resampled(self, items_RN: NDArray[np.int64]) -> Numbers:
        """Spearman's rho of each sample, ties at their mean rank."""
        from scipy.stats import rankdata

        first = rankdata(self.predicted_N[items_RN], axis=1)
        second = rankdata(self.gold_N[items_RN], axis=1)
        first -= first.mean(axis=1, keepdims=True)
        second -= second.mean(axis=1, keepdims=True)
        norms = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
        rho_R: Numbers = (first * second).sum(axis=1)
        rho_R /= np.where(norms > 0, norms, np.inf)
        return rho_R


@dataclass(frozen=True)
class Row:
    """One line of a table before it is judged: whose score, of which group, from what."""

    name: str
    group: Group
    statistic: Statistic


@dataclass(frozen=True)
class Difference:
    """A score less that of the row `against`, with its interval and what that says."""

    against: str
    value: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True)
class Score:
    """A judged line: the score, its 95 % interval, and how it differs from others."""

    name: str
    group: Group
    value: float
    low: float
    high: float
    differences: tuple[Difference, ...] = ()


def judge(rows: Sequence[Row], references: Sequence[str]) -> list[Score]:
    """Scores with intervals, in the order of the rows.

    Args:
        rows: of the same items in the same order.
        references: names of rows; each other row is compared with each of them. A difference whose
            interval holds 0 is none.

    Raises:
        ValueError: rows of different numbers of items, or of none, or two of one name.
    """
    if len({row.name for row in rows}) < len(rows):
        raise ValueError(f"rows of one table need names of their own, got {[r.name for r in rows]}")
    num_items = {row.statistic.num_items for row in rows}
    if len(num_items) != 1 or 0 in num_items:
        raise ValueError(f"rows of one table must have the same items, got numbers {num_items}")
    (count,) = num_items
    once = np.arange(count)[None]
    values = {row.name: float(row.statistic.resampled(once)[0]) for row in rows}
    parts: dict[str, list[Numbers]] = {row.name: [] for row in rows}
    for items_RN in _resamples(count):
        for row in rows:
            parts[row.name].append(row.statistic.resampled(items_RN))
    samples = {name: np.concatenate(found) for name, found in parts.items()}
    return [
        Score(
            row.name,
            row.group,
            values[row.name],
            *_interval(samples[row.name]),
            tuple(
                _difference(values, samples, row.name, reference)
                for reference in references
                if reference != row.name
            ),
        )
        for row in rows
    ]


def best_of(rows: Sequence[Row], group: Group) -> str | None:
    """The row of a group with the highest score; None where the group is empty."""
    members = [row for row in rows if row.group == group]
    if not members:
        return None
    once = np.arange(members[0].statistic.num_items)[None]
    return max(members, key=lambda row: float(row.statistic.resampled(once)[0])).name


def _difference(
    values: dict[str, float], samples: dict[str, Numbers], name: str, against: str
) -> Difference:
    low, high = _interval(samples[name] - samples[against])
    verdict: Verdict = "better" if low > 0 else "worse" if high < 0 else "none"
    return Difference(against, values[name] - values[against], low, high, verdict)


def _interval(samples_R: Numbers) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples_R, [tail, 1 - tail])
    return float(low), float(high)


def _resamples(num_items: int) -> Iterator[NDArray[np.int64]]:
    """The same samples in every run, in pieces that fit into memory."""
    random = np.random.default_rng(_SEED)
    left = NUM_RESAMPLES
    while left:
        rows = min(left, max(1, _CHUNK_ELEMENTS // num_items))
        yield random.integers(num_items, size=(rows, num_items))
        left -= rows
