"""The carried LSTM state of a biLM as an explicit value. Knows no weights or text.

Axes: S directions (forward, backward), L LSTM layers, B batch rows, D cell width, P output width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from elmo_model.options import ElmoOptions


@dataclass(frozen=True)
class BiLMState:
    """Cell and output of every LSTM layer and direction, a row for each row of the batch.

    `cells_SLBD` is float32 even where the arithmetic is of 16 bits; `outputs_SLBP` is the clipped,
    projected output m without the residual, which is what the recurrence carries.
    """

    cells_SLBD: Tensor
    outputs_SLBP: Tensor

    @classmethod
    def zeros(
        cls, options: ElmoOptions, num_rows: int, device: torch.device, dtype: torch.dtype
    ) -> BiLMState:
        """The state before any text; `dtype` is that of the weights."""
        lstm = options.lstm
        lead = (options.num_directions, lstm.n_layers, num_rows)
        cells = torch.zeros(*lead, lstm.dim, device=device, dtype=cell_dtype(dtype))
        return cls(cells, torch.zeros(*lead, lstm.projection_dim, device=device, dtype=dtype))

    @property
    def num_rows(self) -> int:
        """Rows of the batch that this state belongs to."""
        return self.cells_SLBD.shape[2]

    def detach(self) -> BiLMState:
        """The same values, constant for gradients: truncated back-propagation through time."""
        return BiLMState(self.cells_SLBD.detach(), self.outputs_SLBP.detach())

    def rows(self, index_B: Tensor) -> BiLMState:
        """The chosen rows, in the given order (int64 indices; one may be taken many times)."""
        return BiLMState(
            self.cells_SLBD.index_select(2, index_B), self.outputs_SLBP.index_select(2, index_B)
        )

    def first_rows(self, num_rows: int) -> BiLMState:
        """The first `num_rows` rows; rows that this state lacks are zero, as in the original."""
        missing = num_rows - self.num_rows
        cells, outputs = self.cells_SLBD[:, :, :num_rows], self.outputs_SLBP[:, :, :num_rows]
        return BiLMState(_with_zero_rows(cells, missing), _with_zero_rows(outputs, missing))

    def updated(self, newer: BiLMState) -> BiLMState:
        """`newer` for its rows, this state for the rows beyond: a smaller batch leaves the rest."""
        rest = newer.num_rows
        return BiLMState(
            torch.cat([newer.cells_SLBD, self.cells_SLBD[:, :, rest:]], 2),
            torch.cat([newer.outputs_SLBP, self.outputs_SLBP[:, :, rest:]], 2),
        )


def _with_zero_rows(values_SLBX: Tensor, count: int) -> Tensor:
    if count <= 0:
        return values_SLBX
    directions, layers, _, width = values_SLBX.shape
    return torch.cat([values_SLBX, values_SLBX.new_zeros(directions, layers, count, width)], 2)


def cell_dtype(dtype: torch.dtype) -> torch.dtype:
    """Element type of the cell where weights are of `dtype`: never less than float32."""
    return torch.promote_types(dtype, torch.float32)
