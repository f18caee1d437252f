"""A biLM's LSTM weights laid out for batched products over both directions. Knows no batches.

Axes: S directions, P width of inputs and outputs, D cell width, G = 4 D gate columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from elmo_model.bilm import BiLM
from elmo_model.lstm import FORGET_BIAS, LstmLayer


@dataclass(frozen=True)
class StackedLayer:
    """One LSTM layer of all directions.

    `bias_SG` is float32 and holds the forget bias; the other weights are of the kernel's element
    type. `projection_SDP` is None where the output is as wide as the cell.
    """

    input_SPG: Tensor
    recurrent_SPG: Tensor
    bias_SG: Tensor
    projection_SDP: Tensor | None
    cell_clip: float | None
    proj_clip: float | None
    adds_input: bool

    @property
    def width(self) -> int:
        """Width of inputs and outputs, P."""
        return self.input_SPG.shape[1]

    @property
    def dim(self) -> int:
        """Cell width, D."""
        return self.bias_SG.shape[1] // 4


def stack_layers(
    bilm: BiLM, dtype: torch.dtype, device: torch.device | None = None
) -> list[StackedLayer]:
    """Every layer of a model with its directions side by side; no device is the model's own."""
    device = device or bilm.device
    lstm = bilm.options.lstm
    stacks = [stack for stack in (bilm.forward_stack, bilm.backward_stack) if stack is not None]
    layers = []
    for place in range(lstm.n_layers):
        parts = [_layer(stack, place) for stack in stacks]
        kernel = torch.stack([part.kernel.detach() for part in parts]).to(device, dtype)
        layers.append(
            StackedLayer(
                input_SPG=kernel[:, : lstm.projection_dim].contiguous(),
                recurrent_SPG=kernel[:, lstm.projection_dim :].contiguous(),
                bias_SG=_bias([part.bias.detach() for part in parts]).to(device),
                projection_SDP=_projection(parts, device, dtype),
                cell_clip=lstm.cell_clip,
                # The original clips inside the projection: without one there is nothing to clip.
                proj_clip=lstm.proj_clip if lstm.has_projection else None,
                adds_input=place > 0 and lstm.use_skip_connections,
            )
        )
    return layers


def _layer(stack: nn.ModuleList, place: int) -> LstmLayer:
    layer = stack[place]
    assert isinstance(layer, LstmLayer)
    return layer


def _bias(biases: Sequence[Tensor]) -> Tensor:
    bias_SG = torch.stack(list(biases)).float()
    dim = bias_SG.shape[1] // 4
    bias_SG[:, 2 * dim : 3 * dim] += FORGET_BIAS
    return bias_SG


def _projection(
    layers: Sequence[LstmLayer], device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    weights = [layer.projection.detach() for layer in layers if layer.projection is not None]
    return torch.stack(weights).to(device, dtype) if weights else None
