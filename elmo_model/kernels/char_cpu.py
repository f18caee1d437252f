"""Context-free vectors on the CPU: the character encoder with packed products, words shared out.

Computes what `CharCnn` computes, with products in float32 or bfloat16 and all else in float32. A
word's vector has the same bits whatever words it is made with.

Axes: N words, C columns, E character width, F filters, P output width.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from elmo_model.char_cnn import CharCnn, Highway, deciding_columns, used_columns
from elmo_model.characters import PAD_ID
from elmo_model.kernels.packed_linear import PackedLinear, padded_rows
from elmo_model.kernels.workers import Workers

# The widest filter's activations of this many words stay within the processor's cache.
_CHUNK_WORDS = 128
_COLUMNS_STEP = 8


class CpuCharCnn:
    """The character encoder of a model, for prediction."""

    def __init__(self, model: CharCnn, workers: Workers, dtype: torch.dtype) -> None:
        """Pack the weights of a model; `dtype` is that of what is multiplied."""
        self._dtype = dtype
        self._width, self._options = model.width, model.options
        self._workers = workers
        table = model.char_embed.detach()
        self._table = torch.cat([table.new_zeros(1, table.shape[1]), table]).to(dtype)
        self._convolutions = [
            (weight.shape[1], self._pack(weight.flatten(0, 2), None), bias.detach().clone())
            for weight, bias in zip(model.conv_weights, model.conv_biases, strict=True)
        ]
        self._highways = [
            (
                self._pack(highway.carry_weight, highway.carry_bias),
                self._pack(highway.transform_weight, highway.transform_bias),
            )
            for highway in model.highways
            if isinstance(highway, Highway)
        ]
        weight, bias = model.projection_weight, model.projection_bias
        self._projection = None if weight is None else self._pack(weight, bias)
        self._activation = torch.relu if model.options.activation == "relu" else torch.tanh

    def __call__(self, chars_NC: Tensor) -> Tensor:
        """Vectors (N, P) float32 of words, given as shifted ids (N, C)."""
        vectors_NP = torch.empty(chars_NC.shape[0], self._width)
        used_N = used_columns(chars_NC, PAD_ID + 1)
        chunks = torch.split(torch.argsort(used_N, stable=True), _CHUNK_WORDS)

        def make(index: Tensor) -> None:
            columns = deciding_columns(int(used_N[index[-1]]), self._options)
            rows, columns = padded_rows(len(index)), self._columns(columns)
            chars = chars_NC[index, :columns]
            if rows > len(index):
                chars = torch.cat([chars, chars[-1:].expand(rows - len(index), -1)])
            vectors_NP[index] = self._vectors(chars)[: len(index)]

        # The words of the last chunk are the longest: they first, so that no thread ends late.
        self._workers.run_all(partial(make, index) for index in reversed(chunks))
        return vectors_NP

    def _columns(self, needed: int) -> int:
        """Columns to use: few different numbers, since each is a product of its own."""
        rounded = -(-needed // _COLUMNS_STEP) * _COLUMNS_STEP
        return min(rounded, self._options.max_characters_per_token)

    def _vectors(self, chars_NC: Tensor) -> Tensor:
        chars_NCE = F.embedding(chars_NC, self._table)
        num_words, _, dim = chars_NCE.shape
        parts = []
        for width, product, bias in self._convolutions:
            windows = chars_NCE.unfold(1, width, 1).transpose(2, 3).reshape(-1, width * dim)
            scores = product(windows).view(num_words, -1, len(bias))
            parts.append(self._activation(scores.amax(dim=1).float() + bias))
        hidden_NF = torch.cat(parts, dim=1)
        for carry, transform in self._highways:
            factors_NF = hidden_NF.to(self._dtype)
            gate = carry(factors_NF).float().sigmoid_()
            hidden_NF = torch.lerp(hidden_NF, transform(factors_NF).float().relu_(), gate)
        if self._projection is None:
            return hidden_NF
        return self._projection(hidden_NF.to(self._dtype)).float()

    def _pack(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        return PackedLinear(weight, bias, self._dtype)
