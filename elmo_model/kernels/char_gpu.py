"""Context-free vectors on a GPU: large groups of words, and no waiting for their lengths.

Computes what `CharCnn` computes, in float32. How many columns of a word matter is found out on the
host, where the words were spelled, so the device is given work and never asked. Axes: N words, C
columns, E character width, F filters, P output width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from elmo_model.char_cnn import CharCnn, deciding_columns, used_columns
from elmo_model.characters import PAD_ID
from elmo_model.upload import upload

# Words are grouped by columns rounded up to this: few groups, little work on padding.
_COLUMNS_STEP = 4
# Scores and windows of a group's widest filter take no more than this.
_GROUP_BYTES = 256 << 20


class GpuCharCnn:
    """The character encoder of a model, for prediction; runs where the model's weights are."""

    def __init__(self, model: CharCnn) -> None:
        """Take a model whose weights are float32 on the device to run on."""
        self._model = model
        table = model.char_embed.detach()
        self._table = torch.cat([table.new_zeros(1, table.shape[1]), table])
        self._activation = torch.relu if model.options.activation == "relu" else torch.tanh
        self._bytes_per_column = 4 * max(
            weight.shape[3] + weight.shape[1] * weight.shape[2] for weight in model.conv_weights
        )

    def __call__(self, chars_NC: Tensor) -> Tensor:
        """Vectors (N, P) float32 of words, given as shifted ids (N, C) in the host memory."""
        device = self._table.device
        if not chars_NC.shape[0]:
            return self._table.new_empty(0, self._model.width)
        chars_NC = chars_NC.cpu()
        used_N, order_N = used_columns(chars_NC, PAD_ID + 1).sort(stable=True)
        sorted_NC = upload(chars_NC[order_N].to(torch.int32), device)
        groups = [
            self._vectors(sorted_NC[start:stop, :columns])
            for start, stop, columns in self._groups(used_N)
        ]
        vectors_NP = self._table.new_empty(chars_NC.shape[0], self._model.width)
        return vectors_NP.index_copy_(0, upload(order_N, device), torch.cat(groups))

    def _groups(self, used_N: Tensor) -> Iterator[tuple[int, int, int]]:
        """First word, word after the last, and columns of each group; words by rising length."""
        longest = self._model.options.max_characters_per_token
        numbers, counts = torch.unique_consecutive(used_N, return_counts=True)
        needed = [deciding_columns(used, self._model.options) for used in numbers.tolist()]
        columns_of = [min(-(-count // _COLUMNS_STEP) * _COLUMNS_STEP, longest) for count in needed]
        start = 0
        for columns in sorted(set(columns_of)):
            pairs = zip(columns_of, counts.tolist(), strict=True)
            stop = start + sum(count for own, count in pairs if own == columns)
            step = max(1, _GROUP_BYTES // (columns * self._bytes_per_column))
            for first in range(start, stop, step):
                yield first, min(first + step, stop), columns
            start = stop

    def _vectors(self, chars_NC: Tensor) -> Tensor:
        model = self._model
        chars_NCE = F.embedding(chars_NC, self._table)
        parts = []
        for weight, bias in zip(model.conv_weights, model.conv_biases, strict=True):
            _, width, dim, count = weight.shape
            windows = chars_NCE.unfold(1, width, 1).transpose(2, 3).flatten(2)
            scores = windows @ weight.view(width * dim, count)
            parts.append(self._activation(scores.amax(dim=1) + bias))
        hidden_NF = torch.cat(parts, dim=1)
        for highway in model.highways:
            hidden_NF = highway(hidden_NF)
        if model.projection_weight is None or model.projection_bias is None:
            return hidden_NF
        return torch.addmm(model.projection_bias, hidden_NF, model.projection_weight)
