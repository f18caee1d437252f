"""Memory that the steps of a layer share, and which steps make their input gates together.

Axes: S directions, R rows of a step, T steps, P width of outputs, D cell width, G = 4 D gates.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from elmo_model.kernels.gpu_weights import StackedLayer


class StepBuffers:
    """What a step needs between its products, taken once for the widest step."""

    def __init__(self, layer: StackedLayer, max_rows: int, like: Tensor) -> None:
        """Take memory of `like`'s element type on its device."""
        self._layer = layer
        self._directions = layer.bias_SG.shape[0]
        rows = self._directions * max_rows
        self._gates = like.new_empty(rows * 4 * layer.dim)
        self._hidden = like.new_empty(rows * layer.dim)
        self._projected = like.new_empty(rows * layer.width)

    def gates(self, rows: int) -> Tensor:
        """Room for gates (S, R, G)."""
        return view_of(self._gates, self._directions, rows, 4 * self._layer.dim)

    def hidden(self, rows: int) -> Tensor:
        """Room for what the projection reads (S, R, D)."""
        return view_of(self._hidden, self._directions, rows, self._layer.dim)

    def projected(self, rows: int) -> Tensor:
        """Room for what the projection makes (S, R, P)."""
        return view_of(self._projected, self._directions, rows, self._layer.width)


def cut_steps(rows_T: Sequence[int], max_positions: int) -> list[range]:
    """Cut steps into runs of at most `max_positions` rows in all, one step at least."""
    blocks: list[range] = []
    first, count = 0, 0
    for step, rows in enumerate(rows_T):
        if step > first and count + rows > max_positions:
            blocks.append(range(first, step))
            first, count = step, 0
        count += rows
    if first < len(rows_T):
        blocks.append(range(first, len(rows_T)))
    return blocks


def view_of(flat: Tensor, *shape: int) -> Tensor:
    """The head of a buffer in a shape; whole in memory, so that products write into it."""
    return flat[: shape[0] * shape[1] * shape[2]].view(shape)
