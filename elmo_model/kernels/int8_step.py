"""A step of one LSTM layer with int8 weights; a StepArithmetic. Axes as in cpu_layer.py.

Weights have a scale for each column. What they are multiplied with is quantised row by row: every
row has a scale of its own, so that it does not matter which rows stand beside it. Gates are
bfloat16, cells and outputs float32. The first layer's input product is made once for each word, and
is not quantised.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from elmo_model.kernels.cell_step import INT8_ZERO, WordGates
from elmo_model.kernels.cpu_layer import Step
from elmo_model.kernels.native import Step as NativeStep
from elmo_model.kernels.packed_linear import Int8Linear, PackedLinear
from elmo_model.lstm import LstmLayer


class Int8Arithmetic:
    """Quantised weights; needs the C code and a model with a projection."""

    dtype = torch.float32

    def __init__(self, layer: LstmLayer, library: ctypes.CDLL, *, reads_words: bool) -> None:
        """Quantise the weights of a layer; it is not needed afterwards.

        Args:
            layer: the layer.
            library: the C code.
            reads_words: whether the layer reads words, or another layer's outputs.
        """
        width, projection = layer.width, layer.projection
        assert projection is not None
        self.reads_words = reads_words
        self._library = library
        self._dim = layer.kernel.shape[1] // 4
        self.bytes_per_word = 4 * self._dim * torch.bfloat16.itemsize
        self._bias = layer.bias.detach().float().clone()
        self._words = (
            PackedLinear(layer.kernel[:width], layer.bias, torch.bfloat16) if reads_words else None
        )
        weights = layer.kernel[width:] if reads_words else layer.kernel
        self._product = Int8Linear(weights, torch.bfloat16)
        self._projection = Int8Linear(projection, torch.float32)
        self._cell_clip = math.inf if layer.cell_clip is None else layer.cell_clip
        self._proj_clip = math.inf if layer.proj_clip is None else layer.proj_clip

    def word_gates(self, table_UP: Tensor) -> Tensor:
        """The input's share of the gates (U, G) of distinct words, bfloat16."""
        assert self._words is not None
        return self._words(table_UP.bfloat16())

    def step(self, num_rows: int) -> Step:
        """As in `StepArithmetic`."""
        num_factors = (1 if self.reads_words else 2) * self._projection.num_outputs
        stored, scale = _stored(num_rows, num_factors)
        hidden, hidden_scale = _stored(num_rows, self._dim)
        scratch = torch.empty(self._dim)

        def run(
            factors_MF: Tensor, words: WordGates | None, cell_RD: Tensor, output_RP: Tensor
        ) -> None:
            rows, live = len(factors_MF), len(output_RP)
            self._library.elmo_quantise(
                live, num_factors, factors_MF.data_ptr(), stored.data_ptr(), scale.data_ptr()
            )
            product = self._product(stored[:rows])
            index = None if words is None else words.index_R
            native = NativeStep(
                rows=live,
                dim=self._dim,
                product=product.data_ptr(),
                product_scale=scale.data_ptr(),
                input=None if words is None else words.gates.data_ptr(),
                index=None if index is None else index.data_ptr(),
                bias=self._bias.data_ptr(),
                cell=cell_RD.data_ptr(),
                output=hidden.data_ptr(),
                output_scale=hidden_scale.data_ptr(),
                scratch=scratch.data_ptr(),
                clip=self._cell_clip,
            )
            self._library.elmo_cell_int8(ctypes.byref(native))
            new = self._projection(hidden[:rows])[:live]
            torch.mul(new, hidden_scale[:live, None], out=output_RP)
            output_RP.clamp_(-self._proj_clip, self._proj_clip)

        return run


def _stored(num_rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Quantised rows of zeros and their scales."""
    return torch.full((num_rows, width), INT8_ZERO, dtype=torch.uint8), torch.zeros(num_rows)
