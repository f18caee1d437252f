"""One LSTM layer of one direction on the CPU: its loop over steps. Knows no threads or batches.

The first layer's input product is made once for each word. Above it, one product takes a step's
input and the carried output side by side, so that its gates are written and read once and stay in
the cache. How a step is computed is the arithmetic's: float_step.py, int8_step.py. Axes: N packed
positions, U distinct words, B rows by falling length, R live rows, T steps, P width, D cell width,
G = 4 D gates, M rows of a step's product, F its factors (P, or 2 P above the first layer).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from elmo_model.kernels.cell_step import WordGates
from elmo_model.kernels.packed_linear import padded_rows
from elmo_model.lstm import blocks_of_steps


class Step(Protocol):
    """One time step, with the buffers that the steps of some rows share."""

    def __call__(
        self, factors_MF: Tensor, words: WordGates | None, cell_RD: Tensor, output_RP: Tensor
    ) -> None:
        """Compute the step of the live rows.

        Args:
            factors_MF: what is multiplied; rows beyond the live ones may be read, and do not count.
            words: the input's share of the gates, if the factors are the carried output alone.
            cell_RD: float32 cells, read and written.
            output_RP: where the outputs go.
        """
        ...


class StepArithmetic(Protocol):
    """The weights of one layer and how they are multiplied.

    `reads_words`: the layer reads words, by way of `word_gates`; others read a layer's outputs.
    `dtype` is the element type of the factors and outputs.
    """

    dtype: torch.dtype
    bytes_per_word: int
    reads_words: bool

    def word_gates(self, table_UP: Tensor) -> Tensor:
        """The input's share of the gates (U, G) of distinct words; of a layer that reads them."""
        ...

    def step(self, num_rows: int) -> Step:
        """A step for up to so many rows of factors."""
        ...


class CpuLayer:
    """A layer that runs rows through all steps."""

    def __init__(self, arithmetic: StepArithmetic) -> None:
        """Take the layer's weights."""
        self._arithmetic = arithmetic
        self.dtype = arithmetic.dtype
        self.bytes_per_word = arithmetic.bytes_per_word
        self.word_gates = arithmetic.word_gates

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
        # What is multiplied: the carried output, behind the step's input if a layer is read.
        first_column = 0 if self._arithmetic.reads_words else width
        # Some products have more rows than are live (see padded_rows); these are not looked at.
        factors = torch.zeros(padded_rows(num_rows), first_column + width, dtype=self.dtype)
        factors[:num_rows, first_column:] = output_BP
        step = self._arithmetic.step(len(factors))
        words = self._words_by_step(inputs, index_N, live_rows_T)
        first = 0
        for live in live_rows_T:
            last = first + live
            if first_column:
                factors[:live, :width] = inputs[first:last]
            new = outputs[first:last]
            step(factors[: padded_rows(live)], next(words), cell_BD[:live], new)
            factors[:live, first_column:] = new
            first = last
        output_BP.copy_(factors[:num_rows, first_column:])
        return outputs

    def _words_by_step(
        self, inputs: Tensor, index_N: Tensor | None, live_rows_T: list[int]
    ) -> Iterator[WordGates | None]:
        """The words' gates at each step: from their table, or made for some steps at a time."""
        first = 0
        if not self._arithmetic.reads_words:
            yield from (None for _ in live_rows_T)
        elif index_N is not None:
            for live in live_rows_T:
                yield WordGates(inputs, index_N[first : first + live])
                first += live
        else:
            for block in blocks_of_steps(live_rows_T):
                gates = self.word_gates(inputs[first : first + sum(block)])
                first += sum(block)
                start = 0
                for live in block:
                    yield WordGates(gates[start : start + live])
                    start += live
