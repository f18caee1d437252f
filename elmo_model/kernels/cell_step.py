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


@dataclass(frozen=True)
class StepInput:
    """The input's share of the gates of one step.

    `gates` has G columns. `index_R` is the row of each live row in `gates`, or None if they are
    rows 0, 1, ... of it. For int8 `scale` is a factor for each row of `gates`, or None.
    """

    gates: Tensor
    index_R: Tensor | None = None
    scale: Tensor | None = None


def native_cell(
    library: ctypes.CDLL, dtype: torch.dtype, clip: float | None
) -> Callable[..., None]:
    """The C code's step for float32 or bfloat16: (input, recurrent_RG, cell_RD, output_RD)."""
    function = getattr(library, f"elmo_cell_{str(dtype).removeprefix('torch.')}")
    bound = math.inf if clip is None else clip

    def run(given: StepInput, recurrent_RG: Tensor, cell_RD: Tensor, output_RD: Tensor) -> None:
        index = given.index_R
        rows, dim = cell_RD.shape
        function(
            ctypes.byref(
                Step(
                    rows=rows,
                    dim=dim,
                    input=given.gates.data_ptr(),
                    index=None if index is None else index.data_ptr(),
                    recurrent=recurrent_RG.data_ptr(),
                    cell=cell_RD.data_ptr(),
                    output=output_RD.data_ptr(),
                    clip=bound,
                )
            )
        )

    return run


def torch_cell(clip: float | None) -> Callable[..., None]:
    """The same in torch operations, for a machine without a compiler."""

    def run(given: StepInput, recurrent_RG: Tensor, cell_RD: Tensor, output_RD: Tensor) -> None:
        rows = cell_RD.shape[0]
        gates = given.gates[:rows] if given.index_R is None else given.gates[given.index_R]
        _cell((gates + recurrent_RG[:rows]).float(), cell_RD, clip, output_RD)

    return run


def _cell(gates_RG: Tensor, cell_RD: Tensor, clip: float | None, output_RD: Tensor) -> None:
    # tanh(x) = 2 sigmoid(2 x) - 1 is several times faster than torch's tanh.
    i, j, f, o = gates_RG.chunk(4, dim=1)
    new = torch.sigmoid(2 * j).mul_(2).sub_(1).mul_(torch.sigmoid(i))
    cell_RD.mul_(torch.sigmoid(f + FORGET_BIAS)).add_(new)
    if clip is not None:
        cell_RD.clamp_(-clip, clip)
    output_RD.copy_(torch.sigmoid(2 * cell_RD).mul_(2).sub_(1).mul_(torch.sigmoid(o)))
