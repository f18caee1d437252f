"""One LSTM layer of one direction on the CPU, in float32 or bfloat16. Knows no threads or batches.

The input product is made for many steps at once, weights are packed for the processor, and what
lies between the products is one pass over memory. Axes: N packed positions, U distinct words, B
rows by falling length, T steps, P width, D cell width, G = 4 D gates.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from elmo_model.kernels.cell_step import StepInput, native_cell, torch_cell
from elmo_model.kernels.native import NativeCode
from elmo_model.kernels.packed_linear import PackedLinear, padded_rows
from elmo_model.lstm import LstmLayer, blocks_of_steps


class FloatLayer:
    """A layer whose weights, gates and outputs are float32 or bfloat16; cells are float32."""

    def __init__(self, layer: LstmLayer, dtype: torch.dtype, native: NativeCode) -> None:
        """Pack the weights of a layer; it is not needed afterwards."""
        width, projection = layer.width, layer.projection
        self.dtype = dtype
        self._dim = layer.kernel.shape[1] // 4
        self.bytes_per_word = 4 * self._dim * dtype.itemsize
        self._input = PackedLinear(layer.kernel[:width], layer.bias, dtype)
        self._recurrent = PackedLinear(layer.kernel[width:], None, dtype)
        self._projection = None if projection is None else PackedLinear(projection, None, dtype)
        self._proj_clip = layer.proj_clip
        self._cell = (
            torch_cell(layer.cell_clip)
            if native.library is None
            else native_cell(native.library, dtype, layer.cell_clip)
        )

    def word_gates(self, table_UP: Tensor) -> Tensor:
        """The input's share of the gates (U, G) of distinct words."""
        return self._input(table_UP.to(self.dtype))

    def run(
        self,
        inputs: Tensor,
        index_N: Tensor | None,
        live_rows_T: list[int],
        cell_BD: Tensor,
        output_BP: Tensor,
    ) -> Tensor:
        """Run all steps.

        Args:
            inputs: what the layer reads at each position (N, P); or, with `index_N`, the
                `word_gates` that it points into.
            index_N: int64 rows of `inputs`, or None.
            live_rows_T: rows that reach each step, falling.
            cell_BD: float32 cells before the first step; afterwards those after each row's last.
            output_BP: the same of the outputs.

        Returns: outputs (N, P).
        """
        num_rows, width = output_BP.shape
        outputs = torch.empty(sum(live_rows_T), width, dtype=self.dtype)
        # Some products have more rows than are live (see padded_rows); these are not looked at.
        carried = torch.zeros(padded_rows(num_rows), width, dtype=self.dtype)
        carried[:num_rows] = output_BP
        hidden = torch.zeros(len(carried), self._dim, dtype=self.dtype)
        first = 0
        for given, live in self._steps(inputs, index_N, live_rows_T):
            rows = padded_rows(live)
            recurrent = self._recurrent(carried[:rows])
            self._cell(given, recurrent, cell_BD[:live], hidden[:live])
            new = hidden[:rows] if self._projection is None else self._projection(hidden[:rows])
            new = new[:live]
            if self._proj_clip is not None:
                new.clamp_(-self._proj_clip, self._proj_clip)
            carried[:live] = new
            outputs[first : first + live] = new
            first += live
        output_BP.copy_(carried[:num_rows])
        return outputs

    def _steps(
        self, inputs: Tensor, index_N: Tensor | None, live_rows_T: list[int]
    ) -> Iterator[tuple[StepInput, int]]:
        first = 0
        if index_N is not None:
            for live in live_rows_T:
                yield StepInput(inputs, index_N[first : first + live]), live
                first += live
            return
        for block in blocks_of_steps(live_rows_T):
            gates = self._input(inputs[first : first + sum(block)])
            first += sum(block)
            start = 0
            for live in block:
                yield StepInput(gates[start : start + live]), live
                start += live
