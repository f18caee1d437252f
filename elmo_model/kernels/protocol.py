"""What every way of running the LSTM stacks takes and gives. Knows no text, files or pooling.

Axes: S directions, U distinct words, B rows, N packed positions (see packing.py), P projection
width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from elmo_model.packing import PackedLayout
from elmo_model.state import BiLMState


class StackKernel(Protocol):
    """Runs both directions' LSTM stacks over a packed batch, for prediction only.

    A row's result must not depend on the other rows of its batch beyond rounding of the kernel's
    arithmetic; kernels say in `name` and `reason` what they are and why they were taken, and in
    `advice` what would make this machine faster, if anything. `dtype` is that of the layers that
    come out. `positions_run` counts, over all calls, the positions that
    one direction's steps have worked on, those included that only fill up a step.
    """

    name: str
    reason: str
    advice: str
    dtype: torch.dtype
    positions_run: int

    def run(
        self, table_UP: Tensor, index_SN: Tensor, layout: PackedLayout, state: BiLMState
    ) -> tuple[list[Tensor], BiLMState]:
        """All LSTM layers of a batch.

        Args:
            table_UP: float32 context-free vectors of the batch's distinct words.
            index_SN: int64, the row of `table_UP` that each direction reads at each packed
                position.
            layout: the packing, the same for both directions.
            state: before the first step, a row for each row of the batch, in the batch's order.

        Returns: a tensor (S, N, P) for each layer in the kernel's element type, residuals added;
            and the state after each row's last step.
        """
        ...
