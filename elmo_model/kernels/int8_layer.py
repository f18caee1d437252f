"""One LSTM layer of one direction on the CPU with int8 weights. Knows no threads or batches.

Weights have a scale for each column. What they are multiplied with is quantised row by row: every
row has a scale of its own, so that it does not matter which rows stand beside it. Gates are
bfloat16, cells and outputs float32. The first layer's input product is made once for each word, and
is not quantised. Axes as in cpu_layer.py.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from elmo_model.kernels.cell_step import INT8_ZERO, WordGates
from elmo_model.kernels.cpu_layer import gates_by_step
from elmo_model.kernels.native import Step
from elmo_model.kernels.packed_linear import Int8Linear, PackedLinear, padded_rows
from elmo_model.lstm import LstmLayer


class Int8Layer:
    """A layer with quantised weights; needs the C code."""

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
        self._library = library
        self._dim = layer.kernel.shape[1] // 4
        self.bytes_per_word = 4 * self._dim * torch.bfloat16.itemsize
        self._bias = layer.bias.detach().float().contiguous()
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

    def run(
        self,
        inputs: Tensor,
        index_N: Tensor | None,
        live_rows_T: list[int],
        cell_BD: Tensor,
        output_BP: Tensor,
    ) -> Tensor:
        """As `FloatLayer.run`."""
        num_rows, width = output_BP.shape
        outputs = torch.empty(sum(live_rows_T), width)
        first_column = 0 if self._words is not None else width
        factors = torch.zeros(padded_rows(num_rows), first_column + width)
        factors[:num_rows, first_column:] = output_BP
        stored, scale = _stored(*factors.shape)
        hidden, hidden_scale = _stored(len(factors), self._dim)
        scratch = torch.empty(self._dim)
        words = None if self._words is None else gates_by_step(self, inputs, index_N, live_rows_T)
        first = 0
        for live in live_rows_T:
            rows, last = padded_rows(live), first + live
            if words is None:
                factors[:live, :width] = inputs[first:last]
            self._quantise(factors[:live], stored, scale)
            product = self._product(stored[:rows])
            given = None if words is None else next(words)
            self._cell(product, scale, given, cell_BD[:live], hidden, hidden_scale, scratch)
            new = outputs[first:last]
            torch.mul(self._projection(hidden[:rows])[:live], hidden_scale[:live, None], out=new)
            new.clamp_(-self._proj_clip, self._proj_clip)
            factors[:live, first_column:] = new
            first = last
        output_BP.copy_(factors[:num_rows, first_column:])
        return outputs

    def _quantise(self, values: Tensor, stored: Tensor, scale: Tensor) -> None:
        rows, width = values.shape
        self._library.elmo_quantise(
            rows, width, values.data_ptr(), stored.data_ptr(), scale.data_ptr()
        )

    def _cell(
        self,
        product: Tensor,
        scale: Tensor,
        words: WordGates | None,
        cell_RD: Tensor,
        hidden: Tensor,
        hidden_scale: Tensor,
        scratch: Tensor,
    ) -> None:
        index = None if words is None else words.index_R
        step = Step(
            rows=len(cell_RD),
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
        self._library.elmo_cell_int8(ctypes.byref(step))


def _stored(num_rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Quantised rows of zeros and their scales."""
    return torch.full((num_rows, width), INT8_ZERO, dtype=torch.uint8), torch.zeros(num_rows)
