"""One LSTM layer of one direction on the CPU with int8 weights. Knows no threads or batches.

Weights have a scale for each column. What they are multiplied with is quantised row by row: every
row has a scale of its own, so that it does not matter which rows stand beside it. Gates, cells and
outputs are float32. The first layer's input product is made once for each word, and stays exact.
Axes as in cpu_layer.py.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from elmo_model.kernels.cell_step import INT8_ZERO, StepInput
from elmo_model.kernels.native import Step
from elmo_model.kernels.packed_linear import Int8Linear, PackedLinear, padded_rows
from elmo_model.lstm import LstmLayer, blocks_of_steps


class Int8Layer:
    """A layer with quantised weights; needs the C code."""

    dtype = torch.float32

    def __init__(self, layer: LstmLayer, library: ctypes.CDLL, *, reads_words: bool) -> None:
        """Quantise the weights of a layer; it is not needed afterwards.

        Args:
            layer: the layer.
            library: the C code.
            reads_words: whether `word_gates` will be asked for, or the outputs of another layer.
        """
        width, projection = layer.width, layer.projection
        assert projection is not None
        self._library = library
        self._dim = layer.kernel.shape[1] // 4
        self.bytes_per_word = 4 * self._dim * self.dtype.itemsize
        self._bias = layer.bias.detach().float().contiguous()
        self._words = (
            PackedLinear(layer.kernel[:width], None, torch.float32) if reads_words else None
        )
        self._input = None if reads_words else Int8Linear(layer.kernel[:width])
        self._recurrent = Int8Linear(layer.kernel[width:])
        self._projection = Int8Linear(projection)
        self._cell_clip = math.inf if layer.cell_clip is None else layer.cell_clip
        self._proj_clip = math.inf if layer.proj_clip is None else layer.proj_clip

    def word_gates(self, table_UP: Tensor) -> Tensor:
        """The input's share of the gates (U, G) of distinct words, float32, without the bias."""
        assert self._words is not None
        return self._words(table_UP)

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
        rows = padded_rows(num_rows)
        outputs = torch.empty(sum(live_rows_T), width)
        carried, carried_scale = _stored(rows, width)
        self._project(output_BP, None, math.inf, output_BP, carried, carried_scale)
        hidden, hidden_scale = _stored(rows, self._dim)
        scratch = torch.empty(self._dim)
        first = 0
        for given, live in self._steps(inputs, index_N, live_rows_T):
            rows = padded_rows(live)
            products = self._recurrent(carried[:rows])
            self._library.elmo_cell_int8(
                ctypes.byref(
                    Step(
                        rows=live,
                        dim=self._dim,
                        input=given.gates.data_ptr(),
                        index=None if given.index_R is None else given.index_R.data_ptr(),
                        input_scale=None if given.scale is None else given.scale.data_ptr(),
                        recurrent=products.data_ptr(),
                        recurrent_scale=carried_scale.data_ptr(),
                        bias=self._bias.data_ptr(),
                        cell=cell_BD.data_ptr(),
                        output=hidden.data_ptr(),
                        output_scale=hidden_scale.data_ptr(),
                        scratch=scratch.data_ptr(),
                        clip=self._cell_clip,
                    )
                )
            )
            products = self._projection(hidden[:rows])
            new = outputs[first : first + live]
            clip = self._proj_clip
            self._project(products[:live], hidden_scale, clip, new, carried, carried_scale)
            output_BP[:live] = new
            first += live
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
            gates, scale = self._gates(inputs[first : first + sum(block)].contiguous())
            first += sum(block)
            start = 0
            for live in block:
                stop = start + live
                part = None if scale is None else scale[start:stop]
                yield StepInput(gates[start:stop], scale=part), live
                start = stop

    def _gates(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The input's share of the gates of some positions, and its scale for each of them."""
        if self._input is None:
            return self.word_gates(rows), None
        stored, scale = _stored(*rows.shape)
        self._project(rows, None, math.inf, torch.empty_like(rows), stored, scale)
        return self._input(stored), scale

    def _project(
        self,
        products: Tensor,
        scale: Tensor | None,
        clip: float,
        outputs: Tensor,
        stored: Tensor,
        stored_scale: Tensor,
    ) -> None:
        """Scale and clip rows into `outputs`, and quantise these into `stored`."""
        self._library.elmo_project_int8(
            *products.shape,
            products.data_ptr(),
            None if scale is None else scale.data_ptr(),
            clip,
            outputs.data_ptr(),
            stored.data_ptr(),
            stored_scale.data_ptr(),
        )


def _stored(num_rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Quantised rows of zeros and their scales."""
    return torch.full((num_rows, width), INT8_ZERO, dtype=torch.uint8), torch.zeros(num_rows)
