"""Order the positions of a padded batch so that no step works on padding. Knows lengths only.

Rows are sorted by length, longest first; the positions of step 0 of all rows come first, then those
of step 1 of the rows that reach it, and so on. In that order the live rows of a step are a leading
block of the rows before. Axes: B rows, T steps, N packed positions (the sum of all lengths).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True)
class PackedLayout:
    """Where each position of a batch goes when it is packed by step.

    `order_B` lists the batch rows by falling length (ties keep their order), `live_rows_T` says how
    many of them reach each step. `row_N` and `step_N` are the row and the step of each position.
    """

    lengths_B: Index
    order_B: Index
    live_rows_T: Index
    row_N: Index
    step_N: Index

    @classmethod
    def of(cls, lengths_B: NDArray[np.integer]) -> PackedLayout:
        """The layout of a batch with these lengths (0 is allowed)."""
        lengths = np.asarray(lengths_B, dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")
        num_steps = int(lengths.max(initial=0))
        falling = lengths[order]
        live = np.searchsorted(-falling, -np.arange(num_steps), side="left").astype(np.int64)
        step = np.repeat(np.arange(num_steps, dtype=np.int64), live)
        first = np.cumsum(live) - live
        row = order[np.arange(step.size) - first[step]] if step.size else step
        return cls(lengths, order, live, row, step)

    @cached_property
    def inverse_order_B(self) -> Index:
        """Place of each batch row in `order_B`."""
        inverse = np.empty_like(self.order_B)
        inverse[self.order_B] = np.arange(self.order_B.size)
        return inverse

    def times(self, *, backward: bool) -> Index:
        """Each packed position's time (N,); backward, a row is read from its own end."""
        return self.lengths_B[self.row_N] - 1 - self.step_N if backward else self.step_N
