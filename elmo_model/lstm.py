"""One LSTM layer with projection and clips: the readable reference. Knows no text or directions.

Weights keep the layout of the original: one kernel for input and recurrence, gate columns in the
order i, j, f, o (input gate, new input, forget gate, output gate), multiplied from the right. The
forget bias of 1 is added here and not stored.

Axes: B rows, N packed positions (see packing.py), U distinct inputs, P width of inputs and outputs,
D cell width, G = 4 D gate columns. Source: Peters et al. 2018; Sak et al. 2014 for the projection.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from elmo_model.options import LstmOptions
from elmo_model.packing import PackedLayout
from elmo_model.state import cell_dtype

FORGET_BIAS = 1.0
# Gates take 64 KiB a position at original size. Those of distinct inputs are kept together if they
# need no more than this; all others are made for so many positions at a time.
_MAX_TABLE_BYTES = 256 << 20
_BLOCK_POSITIONS = 512


class LstmLayer(nn.Module):
    """The cell of the original: kernel (2P, 4D), bias (4D), projection (D, P) if D > P.

    A new layer holds no weights yet: `BiLM` draws or loads them.
    """

    kernel: nn.Parameter
    bias: nn.Parameter
    projection: nn.Parameter | None

    def __init__(self, options: LstmOptions) -> None:
        super().__init__()
        width, dim = options.projection_dim, options.dim
        self.width = width
        self.cell_clip = options.cell_clip
        # The original clips inside the projection, so without one there is nothing to clip.
        self.proj_clip = options.proj_clip if options.has_projection else None
        self.kernel = nn.Parameter(torch.empty(2 * width, 4 * dim))
        self.bias = nn.Parameter(torch.empty(4 * dim))
        self.projection = nn.Parameter(torch.empty(dim, width)) if options.has_projection else None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Glorot-uniform weights and zero bias, as the original starts its training."""
        nn.init.zeros_(self.bias)
        for weight in (self.kernel, self.projection):
            if weight is not None:
                limit = math.sqrt(6.0 / sum(weight.shape))
                nn.init.uniform_(weight, -limit, limit, generator=generator)

    def forward(
        self,
        inputs_UP: Tensor,
        index_N: Tensor | None,
        layout: PackedLayout,
        state: tuple[Tensor, Tensor],
        recurrent_PG: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the layer over a packed batch.

        Args:
            inputs_UP: inputs in packed order, or distinct inputs if `index_N` is given.
            index_N: int64; packed position n reads `inputs_UP[index_N[n]]`. The input's product is
                then made once for each distinct input, unless that needs too much memory.
            layout: the batch's packing; its rows are those of `state`.
            state: cells (B, D) and outputs (B, P) before the first step, rows in `layout.order_B`.
            recurrent_PG: in the place of the kernel's recurrent half, for dropout.

        Returns: outputs (N, P) in packed order, and the state after each row's last step.
        """
        cell, output = state
        if recurrent_PG is None:
            recurrent_PG = self.kernel[self.width :]
        outputs, finished = [], []
        for gates in self._input_gates(inputs_UP, index_N, layout):
            num_live = gates.shape[0]
            if num_live < cell.shape[0]:
                finished.append((cell[num_live:], output[num_live:]))
                cell, output = cell[:num_live], output[:num_live]
            cell, output = self._step(torch.addmm(gates, output, recurrent_PG), cell)
            outputs.append(output)
        finished.append((cell, output))
        cells, lasts = zip(*reversed(finished), strict=True)
        packed = torch.cat(outputs) if outputs else inputs_UP.new_empty(0, self.width)
        return packed, (torch.cat(cells), torch.cat(lasts))

    def _input_gates(
        self, inputs_UP: Tensor, index_N: Tensor | None, layout: PackedLayout
    ) -> Iterator[Tensor]:
        """The input's share of the gates, step by step: (live rows, G) each."""
        input_PG = self.kernel[: self.width]
        sizes = layout.live_rows_T.tolist()
        if index_N is not None:
            table_bytes = inputs_UP.shape[0] * self.bias.numel() * self.bias.element_size()
            if table_bytes <= _MAX_TABLE_BYTES:
                gates_UG = torch.addmm(self.bias, inputs_UP, input_PG)
                for index in torch.split(index_N, sizes):
                    yield gates_UG[index]
                return
            inputs_UP = inputs_UP[index_N]
        blocks = blocks_of_steps(sizes)
        rows = [sum(block) for block in blocks]
        for inputs_MP, block in zip(torch.split(inputs_UP, rows), blocks, strict=True):
            yield from torch.split(torch.addmm(self.bias, inputs_MP, input_PG), block)

    def _step(self, gates_BG: Tensor, cell_BD: Tensor) -> tuple[Tensor, Tensor]:
        """One time step of the cell; returns the new cell (B, D) and output (B, P)."""
        dtype = gates_BG.dtype
        i, j, f, o = gates_BG.to(cell_dtype(dtype)).chunk(4, dim=-1)
        cell = torch.sigmoid(f + FORGET_BIAS) * cell_BD + torch.sigmoid(i) * torch.tanh(j)
        if self.cell_clip is not None:
            cell = cell.clamp(-self.cell_clip, self.cell_clip)
        output = (torch.sigmoid(o) * torch.tanh(cell)).to(dtype)
        if self.projection is not None:
            output = output @ self.projection
        if self.proj_clip is not None:
            output = output.clamp(-self.proj_clip, self.proj_clip)
        return cell, output


def blocks_of_steps(sizes: list[int]) -> list[list[int]]:
    """Cut steps' live rows into runs of at most 512 positions, one step at least."""
    blocks: list[list[int]] = []
    count = 0
    for size in sizes:
        if not blocks or count + size > _BLOCK_POSITIONS:
            blocks.append([])
            count = 0
        blocks[-1].append(size)
        count += size
    return blocks
