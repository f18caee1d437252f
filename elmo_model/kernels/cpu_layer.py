"""One LSTM layer of one direction on the CPU, in float32 or bfloat16. Knows no threads or batches.

The first layer's input product is made once for each word. Above it, one product takes a step's
input and the carried output side by side, so that its gates are written and read once and stay in
the cache. Weights are packed for the processor, and what lies between the products is one pass over
memory. Axes: N packed positions, U distinct words, B rows by falling length, T steps, P width, D
cell width, G = 4 D gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from elmo_model.kernels.cell_step import WordGates, native_cell, torch_cell
from elmo_model.kernels.native import NativeCode
from elmo_model.kernels.packed_linear import PackedLinear, padded_rows
from elmo_model.lstm import LstmLayer, blocks_of_steps


class FloatLayer:
    """A layer whose weights, gates and outputs are float32 or bfloat16; cells are float32."""

    def __init__(
        self, layer: LstmLayer, dtype: torch.dtype, native: NativeCode, *, reads_words: bool
    ) -> None:
        """Pack the weights of a layer; it is not needed afterwards.

        Args:
            layer: the layer.
            dtype: float32 or bfloat16.
            native: the C code, or why there is none.
            reads_words: whether the layer reads words, or another layer's outputs.
        """
        width, projection = layer.width, layer.projection
        self.dtype = dtype
        self._dim = layer.kernel.shape[1] // 4
        self.bytes_per_word = 4 * self._dim * dtype.itemsize
        words, others = layer.kernel[:width], layer.kernel[width:]
        self._words = PackedLinear(words, layer.bias, dtype) if reads_words else None
        self._product = (
            PackedLinear(others, None, dtype)
            if reads_words
            else PackedLinear(layer.kernel, layer.bias, dtype)
        )
        self._projection = None if projection is None else PackedLinear(projection, None, dtype)
        self._proj_clip = layer.proj_clip
        self._cell = (
            torch_cell(layer.cell_clip)
            if native.library is None
            else native_cell(native.library, dtype, layer.cell_clip)
        )

    def word_gates(self, table_UP: Tensor) -> Tensor:
        """The input's share of the gates (U, G) of distinct words."""
        assert self._words is not None
        return self._words(table_UP.to(self.dtype))

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
        # What is multiplied: the carried output, behind the step's input if a layer is read.
        first_column = 0 if self._words is not None else width
        factors = torch.zeros(padded_rows(num_rows), first_column + width, dtype=self.dtype)
        factors[:num_rows, first_column:] = output_BP
        hidden = torch.zeros(len(factors), self._dim, dtype=self.dtype)
        words = None if self._words is None else gates_by_step(self, inputs, index_N, live_rows_T)
        first = 0
        for live in live_rows_T:
            rows, last = padded_rows(live), first + live
            if words is None:
                factors[:live, :width] = inputs[first:last]
            product = self._product(factors[:rows])
            given = None if words is None else next(words)
            self._cell(product, given, cell_BD[:live], hidden[:live])
            new = hidden[:rows] if self._projection is None else self._projection(hidden[:rows])
            new = new[:live]
            if self._proj_clip is not None:
                new.clamp_(-self._proj_clip, self._proj_clip)
            factors[:live, first_column:] = new
            outputs[first:last] = new
            first = last
        output_BP.copy_(factors[:num_rows, first_column:])
        return outputs


class ReadsWords(Protocol):
    """A layer that makes gates of words."""

    def word_gates(self, table_UP: Tensor) -> Tensor:
        """The input's share of the gates of distinct words."""
        ...


def gates_by_step(
    layer: ReadsWords, inputs: Tensor, index_N: Tensor | None, live_rows_T: list[int]
) -> Iterator[WordGates]:
    """The words' gates at each step: from their table, or made for some steps at a time."""
    first = 0
    if index_N is not None:
        for live in live_rows_T:
            yield WordGates(inputs, index_N[first : first + live])
            first += live
        return
    for block in blocks_of_steps(live_rows_T):
        gates = layer.word_gates(inputs[first : first + sum(block)])
        first += sum(block)
        start = 0
        for live in block:
            yield WordGates(gates[start : start + live])
            start += live
