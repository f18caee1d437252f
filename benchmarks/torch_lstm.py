"""Both stacks as torch's own LSTM with projection runs them. It cannot clip: a reference for speed.

It reads the same packed positions as our kernels, so nothing is padded on either side. Where no
clip of the model is active its numbers are those of the biLM. Axes: S directions, L layers, U
distinct words, N packed positions, P projection width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from elmo_model.options import ElmoOptions
from elmo_model.packing import PackedLayout

FORGET_BIAS = 1.0


class TorchStacks:
    """`torch.nn.LSTM(proj_size)` for every layer and direction, from a zero state."""

    def __init__(
        self, options: ElmoOptions, state: Mapping[str, Tensor], dtype: torch.dtype
    ) -> None:
        """Copy the weights in torch's layout: gates in the order i, f, g, o."""
        assert options.lstm.has_projection
        self.dtype = dtype
        self._adds_input = options.lstm.use_skip_connections
        self._layers_SL = [
            [
                _layer(options, state, f"{stack}.{place}.").to(dtype)
                for place in range(options.lstm.n_layers)
            ]
            for stack in ("forward_stack", "backward_stack")[: options.num_directions]
        ]

    def run(self, table_UP: Tensor, index_SN: Tensor, layout: PackedLayout) -> list[Tensor]:
        """A tensor (S, N, P) for each layer, residuals added; arguments as `StackKernel.run`."""
        live_rows_T = torch.from_numpy(layout.live_rows_T)
        table_UP = table_UP.to(self.dtype)
        results = []
        with torch.no_grad():
            for index_N, layers in zip(index_SN, self._layers_SL, strict=True):
                inputs_NP = table_UP[index_N]
                outputs = []
                for place, layer in enumerate(layers):
                    packed, _ = layer(PackedSequence(inputs_NP, live_rows_T))
                    adds = place and self._adds_input
                    inputs_NP = packed.data + inputs_NP if adds else packed.data
                    outputs.append(inputs_NP)
                results.append(outputs)
        return [torch.stack(parts) for parts in zip(*results, strict=True)]


def _layer(options: ElmoOptions, state: Mapping[str, Tensor], prefix: str) -> nn.LSTM:
    width, dim = options.lstm.projection_dim, options.lstm.dim
    layer = nn.LSTM(width, dim, proj_size=width)
    kernel_GP, bias_G = state[prefix + "kernel"].t(), state[prefix + "bias"].clone()
    bias_G[2 * dim : 3 * dim] += FORGET_BIAS
    with torch.no_grad():
        layer.weight_ih_l0.copy_(_reordered(kernel_GP[:, :width]))
        layer.weight_hh_l0.copy_(_reordered(kernel_GP[:, width:]))
        layer.bias_ih_l0.copy_(_reordered(bias_G))
        layer.bias_hh_l0.zero_()
        layer.weight_hr_l0.copy_(state[prefix + "projection"].t())
    return layer.requires_grad_(False)


def _reordered(gates_G: Tensor) -> Tensor:
    """Gate rows in the order i, j, f, o to torch's i, f, g, o, where g is j."""
    i, j, f, o = gates_G.chunk(4)
    return torch.cat([i, f, j, o])
