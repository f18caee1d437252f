"""The pointwise part of an LSTM layer's steps in training, and its gradient: in C, or in torch.

Both work on buffers that hold all steps of all rows; a call does one step of some rows. Axes: T
steps, B rows, R the rows of a call, D cell width, G = 4 D gates in the order i, j, f, o.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from elmo_model.kernels.native import TrainingStep, load
from elmo_model.lstm import FORGET_BIAS
from elmo_model.state import cell_dtype


@dataclass(frozen=True)
class CellTrace:
    """What the steps of one layer leave for their gradient.

    `gates_TBG` are those after their activations and `outputs_TBD` what goes into the projection,
    both in the products' element type. `cells_TBD` (float32 at least) are the cells before the
    clip, which tell where the clip stops the gradient; `first_BD` is the cell before the first
    step. `clip` is infinite for none.
    """

    gates_TBG: Tensor
    cells_TBD: Tensor
    outputs_TBD: Tensor
    first_BD: Tensor
    clip: float

    @classmethod
    def empty(
        cls, num_steps: int, first_BD: Tensor, clip: float | None, dtype: torch.dtype
    ) -> CellTrace:
        """Buffers for so many steps; `dtype` is that of the products."""
        num_rows, dim = first_BD.shape
        device = first_BD.device
        return cls(
            torch.empty(num_steps, num_rows, 4 * dim, dtype=dtype, device=device),
            torch.empty(num_steps, num_rows, dim, dtype=cell_dtype(dtype), device=device),
            torch.empty(num_steps, num_rows, dim, dtype=dtype, device=device),
            first_BD.to(cell_dtype(dtype)).contiguous(),
            math.inf if clip is None else clip,
        )

    def last_cell(self) -> Tensor:
        """The clipped cell after the last step, (B, D)."""
        return self.cells_TBD[-1].clamp(-self.clip, self.clip)


class TrainingCell(Protocol):
    """Steps of some rows of a trace."""

    def forward(self, step: int, product_RG: Tensor) -> None:
        """Fill one step of the trace from the gates before their activations."""
        ...

    def backward(self, step: int, grad_output_RD: Tensor, grad_gates_RG: Tensor) -> None:
        """The gradient of one step; steps come from the last to the first.

        Args:
            step: which.
            grad_output_RD: gradient of `outputs_TBD`.
            grad_gates_RG: where that of the gates before their activations goes.
        """
        ...


def training_cell(
    trace: CellTrace, rows: slice, grad_cell_RD: Tensor | None, grad_bias_G: Tensor | None
) -> TrainingCell:
    """The cell for some rows of a trace: in C on the CPU if there is a compiler, else in torch.

    Args:
        trace: buffers of all rows.
        rows: which of them, with a start and a stop.
        grad_cell_RD: contiguous float32 gradient of the last cell; each backward step turns it
            into that of the cell before. None if there will be no backward.
        grad_bias_G: float32, to which the gradients of the gates are added; None likewise.
    """
    library = load().library
    is_native = (
        library is not None
        and trace.gates_TBG.device.type == "cpu"
        and trace.gates_TBG.dtype in (torch.float32, torch.bfloat16)
    )
    if library is not None and is_native:
        return NativeTrainingCell(library, trace, rows, grad_cell_RD, grad_bias_G)
    return TorchTrainingCell(trace, rows, grad_cell_RD, grad_bias_G)


class NativeTrainingCell:
    """Calls training.c; a TrainingCell. Calls release Python's lock."""

    def __init__(
        self,
        library: ctypes.CDLL,
        trace: CellTrace,
        rows: slice,
        grad_cell_RD: Tensor | None,
        grad_bias_G: Tensor | None,
    ) -> None:
        """As `training_cell`."""
        name = str(trace.gates_TBG.dtype).removeprefix("torch.")
        self._forward = getattr(library, f"elmo_training_forward_{name}")
        self._backward = getattr(library, f"elmo_training_backward_{name}")
        self._trace = trace  # keeps what the addresses point to
        self._grads = (grad_cell_RD, grad_bias_G)
        num_rows, dim = trace.first_BD.shape
        itemsize = trace.gates_TBG.element_size()
        self._gates = trace.gates_TBG.data_ptr() + rows.start * 4 * dim * itemsize
        self._outputs = trace.outputs_TBD.data_ptr() + rows.start * dim * itemsize
        self._cells = trace.cells_TBD.data_ptr() + rows.start * dim * 4
        self._first = trace.first_BD.data_ptr() + rows.start * dim * 4
        self._step_bytes, self._cell_step_bytes = num_rows * dim * itemsize, num_rows * dim * 4
        self._arguments = TrainingStep(rows=rows.stop - rows.start, dim=dim, clip=trace.clip)
        if grad_cell_RD is not None and grad_bias_G is not None:
            self._arguments.grad_cell = grad_cell_RD.data_ptr()
            self._arguments.grad_bias = grad_bias_G.data_ptr()

    def forward(self, step: int, product_RG: Tensor) -> None:
        """As in `TrainingCell`."""
        arguments = self._at(step)
        arguments.product = product_RG.data_ptr()
        arguments.output = self._outputs + step * self._step_bytes
        self._forward(ctypes.byref(arguments))

    def backward(self, step: int, grad_output_RD: Tensor, grad_gates_RG: Tensor) -> None:
        """As in `TrainingCell`."""
        arguments = self._at(step)
        arguments.grad_output = grad_output_RD.data_ptr()
        arguments.grad_gates = grad_gates_RG.data_ptr()
        self._backward(ctypes.byref(arguments))

    def _at(self, step: int) -> TrainingStep:
        arguments = self._arguments
        arguments.gates = self._gates + 4 * step * self._step_bytes
        arguments.cell = self._cells + step * self._cell_step_bytes
        arguments.before = self._cells + (step - 1) * self._cell_step_bytes if step else self._first
        arguments.clip_before = self._trace.clip if step else math.inf
        return arguments


class TorchTrainingCell:
    """The same in torch operations, for any device and element type; a TrainingCell."""

    def __init__(
        self,
        trace: CellTrace,
        rows: slice,
        grad_cell_RD: Tensor | None,
        grad_bias_G: Tensor | None,
    ) -> None:
        """As `training_cell`."""
        self._trace, self._rows = trace, rows
        self._grad_cell, self._grad_bias = grad_cell_RD, grad_bias_G

    def forward(self, step: int, product_RG: Tensor) -> None:
        """As in `TrainingCell`."""
        trace, rows = self._trace, self._rows
        i, j, f, o = product_RG.to(trace.cells_TBD.dtype).chunk(4, dim=1)
        i, j, o = torch.sigmoid(i), torch.tanh(j), torch.sigmoid(o)
        f = torch.sigmoid(f + FORGET_BIAS)
        cell = torch.addcmul(i * j, f, self._cell_before(step))
        trace.gates_TBG[step, rows] = torch.cat([i, j, f, o], dim=1).to(trace.gates_TBG.dtype)
        trace.cells_TBD[step, rows] = cell
        output = o * torch.tanh(cell.clamp(-trace.clip, trace.clip))
        trace.outputs_TBD[step, rows] = output.to(trace.outputs_TBD.dtype)

    def backward(self, step: int, grad_output_RD: Tensor, grad_gates_RG: Tensor) -> None:
        """As in `TrainingCell`."""
        trace, rows = self._trace, self._rows
        assert self._grad_cell is not None
        assert self._grad_bias is not None
        wide = trace.cells_TBD.dtype
        i, j, f, o = trace.gates_TBG[step, rows].to(wide).chunk(4, dim=1)
        cell, grad = trace.cells_TBD[step, rows], grad_output_RD.to(wide)
        squashed = torch.tanh(cell.clamp(-trace.clip, trace.clip))
        grad_cell = self._grad_cell + grad * o * (1 - squashed * squashed)
        grad_cell = grad_cell.masked_fill(cell.abs() > trace.clip, 0.0)
        grad_gates = torch.cat(
            [
                grad_cell * j * i * (1 - i),
                grad_cell * i * (1 - j * j),
                grad_cell * self._cell_before(step) * f * (1 - f),
                grad * squashed * o * (1 - o),
            ],
            dim=1,
        )
        torch.mul(grad_cell, f, out=self._grad_cell)
        self._grad_bias += grad_gates.sum(0)
        grad_gates_RG.copy_(grad_gates)

    def _cell_before(self, step: int) -> Tensor:
        trace = self._trace
        if not step:
            return trace.first_BD[self._rows]
        return trace.cells_TBD[step - 1, self._rows].clamp(-trace.clip, trace.clip)
