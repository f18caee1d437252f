"""One time step's pointwise part on the CPU: the C code, or the same in plain torch operations.

Both write into buffers that the caller keeps. Axes: R live rows, D cell width, P projection width,
G = 4 D gates in the order i, j, f, o.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elmo_model.kernels.native import Step
from elmo_model.lstm import FORGET_BIAS

INT8_ZERO = 128

Cell = Callable[[Tensor, "WordGates | None", Tensor, Tensor], None]


@dataclass(frozen=True)
class WordGates:
    """The input's share of the gates of one step, where the product has only the recurrence's.

    `index_R` is the row of each live row in `gates`, or None if they are rows 0, 1, ... of it.
    """

    gates: Tensor
    index_R: Tensor | None = None


def native_cell(library: ctypes.CDLL, dtype: torch.dtype, clip: float | None) -> Cell:
    """The C code's step for float32 or bfloat16: (product_RG, words, cell_RD, output_RD)."""
    function = getattr(library, f"elmo_cell_{str(dtype).removeprefix('torch.')}")
    bound = math.inf if clip is None else clip

    def run(
        product_RG: Tensor, words: WordGates | None, cell_RD: Tensor, output_RD: Tensor
    ) -> None:
        rows, dim = cell_RD.shape
        index = None if words is None else words.index_R
        step = Step(
            rows=rows,
            dim=dim,
            product=product_RG.data_ptr(),
            input=None if words is None else words.gates.data_ptr(),
            index=None if index is None else index.data_ptr(),
            cell=cell_RD.data_ptr(),
            output=output_RD.data_ptr(),
            clip=bound,
        )
        function(ctypes.byref(step))

    return run


def torch_cell(clip: float | None) -> Cell:
    """The same in torch operations, for a machine without a compiler."""

    def run(
        product_RG: Tensor, words: WordGates | None, cell_RD: Tensor, output_RD: Tensor
    ) -> None:
        rows = cell_RD.shape[0]
        gates_RG = product_RG[:rows].float()
        if words is not None:
            given = words.gates[:rows] if words.index_R is None else words.gates[words.index_R]
            gates_RG = gates_RG + given
        # tanh(x) = 2 sigmoid(2 x) - 1 is several times faster than torch's tanh.
        i, j, f, o = gates_RG.chunk(4, dim=1)
        new = torch.sigmoid(2 * j).mul_(2).sub_(1).mul_(torch.sigmoid(i))
        cell_RD.mul_(torch.sigmoid(f + FORGET_BIAS)).add_(new)
        if clip is not None:
            cell_RD.clamp_(-clip, clip)
        output_RD.copy_(torch.sigmoid(2 * cell_RD).mul_(2).sub_(1).mul_(torch.sigmoid(o)))

    return run
