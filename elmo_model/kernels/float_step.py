"""A step of one LSTM layer in float32 or bfloat16; a StepArithmetic. Axes as in cpu_layer.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from elmo_model.kernels.cell_step import WordGates, native_cell, torch_cell
from elmo_model.kernels.cpu_layer import Step
from elmo_model.kernels.native import NativeCode
from elmo_model.kernels.packed_linear import PackedLinear
from elmo_model.lstm import LstmLayer


class FloatArithmetic:
    """Weights, gates and outputs are float32 or bfloat16; cells are float32."""

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
        self.dtype = dtype
        self.reads_words = reads_words
        self._dim = layer.kernel.shape[1] // 4
        self.bytes_per_word = 4 * self._dim * dtype.itemsize
        words, others = layer.kernel[: layer.width], layer.kernel[layer.width :]
        self._words = PackedLinear(words, layer.bias, dtype) if reads_words else None
        self._product = (
            PackedLinear(others, None, dtype)
            if reads_words
            else PackedLinear(layer.kernel, layer.bias, dtype)
        )
        projection = layer.projection
        self._projection = None if projection is None else PackedLinear(projection, None, dtype)
        self._proj_clip = math.inf if layer.proj_clip is None else layer.proj_clip
        self._cell = (
            torch_cell(layer.cell_clip)
            if native.library is None
            else native_cell(native.library, dtype, layer.cell_clip)
        )

    def word_gates(self, table_UP: Tensor) -> Tensor:
        """The input's share of the gates (U, G) of distinct words."""
        assert self._words is not None
        return self._words(table_UP.to(self.dtype))

    def step(self, num_rows: int) -> Step:
        """As in `StepArithmetic`."""
        hidden = torch.zeros(num_rows, self._dim, dtype=self.dtype)
        clip = self._proj_clip

        def run(
            factors_MF: Tensor, words: WordGates | None, cell_RD: Tensor, output_RP: Tensor
        ) -> None:
            live = len(output_RP)
            self._cell(self._product(factors_MF), words, cell_RD, hidden[:live])
            new = hidden[: len(factors_MF)]
            if self._projection is not None:
                new = self._projection(new)
            torch.clamp(new[:live], -clip, clip, out=output_RP)

        return run
