"""The layers of a batch as a kernel leaves them: one direction at a time, in packed order.

Position n of the forward and of the backward direction is the same step of the same row, but not
the same time, since a row is read backward from its own end. Pooling can work on that; whoever
wants whole vectors unpacks. Knows lengths and tensors only.

Axes: U distinct words, B rows, T times, N packed positions, M kept positions, L LSTM layers, S
directions, P projection width, K outputs for a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elmo_model.layer_choice import LayerChoice
from elmo_model.packing import Index, PackedLayout
from elmo_model.upload import upload


@dataclass(frozen=True)
class PackedLayers:
    """What comes out of a biLM for one batch.

    `table_UP` holds context-free vectors and `index_SN` the row of each position in it, which
    together are layer 0; `outputs_L` holds the LSTM layers, (S, N, P) each.
    """

    layout: PackedLayout
    table_UP: Tensor
    index_SN: Tensor
    outputs_L: Sequence[Tensor]

    @property
    def num_directions(self) -> int:
        """Directions of the model, S."""
        return self.index_SN.shape[0]

    def kept(self, direction: int, *, keep_marks: bool) -> tuple[Index, Index, Index]:
        """Packed positions of a direction that come out, with their rows and times (M,) each.

        Without marks the first and the last position of every row are left out, and times count
        from the first word.
        """
        layout = self.layout
        times_N = layout.times(backward=direction == 1)
        if keep_marks:
            return np.arange(times_N.size), layout.row_N, times_N
        last_N = layout.lengths_B[layout.row_N] - 1
        kept_M = np.flatnonzero((times_N > 0) & (times_N < last_N))
        return kept_M, layout.row_N[kept_M], times_N[kept_M] - 1

    def combine(self, choice: LayerChoice, direction: int, source_M: Tensor) -> Tensor:
        """Chosen or mixed layers of some positions of a direction: (M, K, P).

        Layers that are not asked for are not looked at.
        """

        def layer(place: int) -> Tensor:
            if place:
                return self.outputs_L[place - 1][direction, source_M]
            return self.table_UP[self.index_SN[direction, source_M]]

        return torch.stack(choice.combine(layer, len(self.outputs_L) + 1), 1)

    def unpack(self, num_times: int, *, keep_marks: bool) -> Tensor:
        """All layers in the shape of the batch: (L+1, B, T, S P), exact zeros at padding."""
        num_rows, width = len(self.layout.lengths_B), self.table_UP.shape[1]
        num_directions = self.num_directions
        layers = self.table_UP.new_zeros(
            len(self.outputs_L) + 1, num_rows * num_times, num_directions * width
        )
        for direction in range(num_directions):
            kept_M, row_M, time_M = self.kept(direction, keep_marks=keep_marks)
            source = to_device(kept_M, layers.device)
            target = to_device(row_M * num_times + time_M, layers.device)
            columns = slice(direction * width, (direction + 1) * width)
            words = self.table_UP[self.index_SN[direction, source]]
            layers[0, :, columns].index_copy_(0, target, words)
            for place, outputs_SNP in enumerate(self.outputs_L, start=1):
                layers[place, :, columns].index_copy_(0, target, outputs_SNP[direction, source])
        return layers.view(len(layers), num_rows, num_times, layers.shape[2])


def packed_index(
    ids_BT: NDArray[np.integer], layout: PackedLayout, num_directions: int, device: torch.device
) -> Tensor:
    """The id that each direction reads at each packed position, (S, N) int64."""
    parts = [
        ids_BT[layout.row_N, layout.times(backward=direction == 1)]
        for direction in range(num_directions)
    ]
    return to_device(np.stack(parts), device)


def to_device(index: NDArray[np.integer], device: torch.device) -> Tensor:
    """An index array as an int64 tensor where the model is; nothing waits for a GPU."""
    return upload(torch.from_numpy(index.astype(np.int64)), device)
