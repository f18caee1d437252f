"""The two pointwise parts of a time step, in plain torch: for GPUs without Triton, and for tests.

Both work on `live_1` leading rows of the R rows they are given. That number stays on the device, so
that a recorded graph serves batches of other lengths. Knows no schedule and no weights' files.

Axes: S directions, R rows of the step, U rows of input gates, D cell width, G = 4 D gate columns
(i, j, f, o), P output width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from elmo_model.kernels.gpu_weights import StackedLayer


class Pointwise(Protocol):
    """What a step does between its matrix products. Everything is written in place."""

    name: str

    def cell(
        self,
        layer: StackedLayer,
        gates_SRG: Tensor,
        source_SUG: Tensor,
        index_SR: Tensor,
        live_1: Tensor,
        cell_SRD: Tensor,
        hidden_SRD: Tensor,
    ) -> None:
        """The cell of every live row, in float32.

        Args:
            layer: for its bias (forget bias included) and the clip of the cell.
            gates_SRG: the recurrent share of the gates.
            source_SUG: the input's share of the gates, without bias.
            index_SR: int64, the row of `source_SUG` that each row reads.
            live_1: int64, how many leading rows are live.
            cell_SRD: float32 state, updated.
            hidden_SRD: sigmoid(o) tanh(cell) is written here; rows that are not live are undefined.
        """
        ...

    def carry(
        self,
        layer: StackedLayer,
        projected_SRP: Tensor,
        inputs_SRP: Tensor,
        live_1: Tensor,
        output_SRP: Tensor,
        packed_SRP: Tensor,
    ) -> None:
        """Clip what the projection made, carry it on, and put it out with the residual.

        Args:
            layer: for the clip of the projection and whether the input is added.
            projected_SRP: what the projection made.
            inputs_SRP: the layer's inputs at this step; not read unless `layer.adds_input`.
            live_1: int64, how many leading rows are live.
            output_SRP: the carried output, written without the residual.
            packed_SRP: this step's place in the layer's outputs, written.
        """
        ...


class TorchPointwise:
    """A dozen small torch operations for each part."""

    name = "torch"

    def cell(
        self,
        layer: StackedLayer,
        gates_SRG: Tensor,
        source_SUG: Tensor,
        index_SR: Tensor,
        live_1: Tensor,
        cell_SRD: Tensor,
        hidden_SRD: Tensor,
    ) -> None:
        """As in `Pointwise`."""
        index_SRG = index_SR[:, :, None].expand(-1, -1, gates_SRG.shape[2])
        input_SRG = source_SUG.gather(1, index_SRG).to(cell_SRD.dtype)
        i, j, f, o = (gates_SRG + input_SRG + layer.bias_SG[:, None]).chunk(4, dim=2)
        cell = torch.sigmoid(f) * cell_SRD + torch.sigmoid(i) * torch.tanh(j)
        if layer.cell_clip is not None:
            cell = cell.clamp(-layer.cell_clip, layer.cell_clip)
        cell_SRD.copy_(torch.where(_live(live_1, cell), cell, cell_SRD))
        hidden_SRD.copy_(torch.sigmoid(o) * torch.tanh(cell))

    def carry(
        self,
        layer: StackedLayer,
        projected_SRP: Tensor,
        inputs_SRP: Tensor,
        live_1: Tensor,
        output_SRP: Tensor,
        packed_SRP: Tensor,
    ) -> None:
        """As in `Pointwise`."""
        output = projected_SRP
        if layer.proj_clip is not None:
            output = output.clamp(-layer.proj_clip, layer.proj_clip)
        output_SRP.copy_(torch.where(_live(live_1, output), output, output_SRP))
        packed_SRP.copy_(output + inputs_SRP if layer.adds_input else output)


def _live(live_1: Tensor, values_SRX: Tensor) -> Tensor:
    """Which rows are live, (R, 1)."""
    return (torch.arange(values_SRX.shape[1], device=values_SRX.device) < live_1)[:, None]
