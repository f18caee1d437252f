"""Characters of a word to its context-free vector. Knows character ids only: no text, no sentences.

Character embedding, one convolution per filter width, maximum over the word, activation, highways,
projection. Weights keep the layout of the original, which multiplies from the right.

Axes: N words, C characters of a word, E character width, F sum of filter counts, P output width.
Source: Kim et al. 2015; Srivastava et al. 2015 for highways; as used by Peters et al. 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elmo_model.characters import PAD_ID
from elmo_model.options import NUM_STORED_CHARACTERS, CharCnnOptions

_CARRY_BIAS = -2.0
# The widest filter's activations of this many words stay within the processor's cache.
_CHUNK_WORDS = 128


class Highway(nn.Module):
    """g = sigmoid(h W_carry + b_carry); h <- g relu(h W_transform + b_transform) + (1 - g) h.

    The activation is relu whatever the convolutions use, and the gate named "carry" weighs the
    transformed part: both as in the original.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.carry_weight = nn.Parameter(torch.empty(width, width))
        self.carry_bias = nn.Parameter(torch.empty(width))
        self.transform_weight = nn.Parameter(torch.empty(width, width))
        self.transform_bias = nn.Parameter(torch.empty(width))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The original's start of training: mostly pass the input on."""
        for weight in (self.carry_weight, self.transform_weight):
            nn.init.normal_(weight, std=weight.shape[0] ** -0.5, generator=generator)
        nn.init.constant_(self.carry_bias, _CARRY_BIAS)
        nn.init.zeros_(self.transform_bias)

    def forward(self, hidden_NF: Tensor) -> Tensor:
        """(N, F) to (N, F)."""
        gate = torch.sigmoid(torch.addmm(self.carry_bias, hidden_NF, self.carry_weight))
        transformed = torch.relu(torch.addmm(self.transform_bias, hidden_NF, self.transform_weight))
        return torch.lerp(hidden_NF, transformed, gate)


class CharCnn(nn.Module):
    """The character encoder; `width` is the width P of what comes out. `BiLM` draws its weights."""

    projection_weight: nn.Parameter | None
    projection_bias: nn.Parameter | None

    def __init__(self, options: CharCnnOptions, width: int) -> None:
        super().__init__()
        dim, num_filters = options.embedding_dim, options.num_filters
        self.options = options
        self.width = width
        self.char_embed = nn.Parameter(torch.empty(NUM_STORED_CHARACTERS, dim))
        self.conv_weights = nn.ParameterList(
            torch.empty(1, filter_width, dim, count) for filter_width, count in options.filters
        )
        self.conv_biases = nn.ParameterList(torch.empty(count) for _, count in options.filters)
        self.highways = nn.ModuleList(Highway(num_filters) for _ in range(options.n_highway))
        projects = num_filters != width
        self.projection_weight = nn.Parameter(torch.empty(num_filters, width)) if projects else None
        self.projection_bias = nn.Parameter(torch.empty(width)) if projects else None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights as the original starts its training."""
        nn.init.uniform_(self.char_embed, -1.0, 1.0, generator=generator)
        for weight, bias in zip(self.conv_weights, self.conv_biases, strict=True):
            if self.options.activation == "relu":
                nn.init.uniform_(weight, -0.05, 0.05, generator=generator)
            else:
                fan_in = weight.shape[1] * weight.shape[2]
                nn.init.normal_(weight, std=fan_in**-0.5, generator=generator)
            nn.init.zeros_(bias)
        for highway in self.highways:
            assert isinstance(highway, Highway)
            highway.reset_parameters(generator)
        if self.projection_weight is not None and self.projection_bias is not None:
            std = self.projection_weight.shape[0] ** -0.5
            nn.init.normal_(self.projection_weight, std=std, generator=generator)
            nn.init.zeros_(self.projection_bias)

    def forward(self, chars_NC: Tensor, *, shifted: bool = True) -> Tensor:
        """The context-free vectors of N words.

        Args:
            chars_NC: int64 ids, each word padded to exactly C; see characters.py.
            shifted: ids are 1..261 with 0 for "no token" (prediction); else 0..260 (training).

        Returns: (N, P) in the weights' dtype.
        """
        table: Tensor = self.char_embed
        pad = PAD_ID
        if shifted:
            table, pad = torch.cat([table.new_zeros(1, table.shape[1]), table]), PAD_ID + 1
        if not chars_NC.shape[0]:
            return table.new_empty(0, self.width)
        used_N = used_columns(chars_NC, pad)
        order_N = torch.argsort(used_N, stable=True)
        longest = used_N[order_N[_CHUNK_WORDS - 1 :: _CHUNK_WORDS]].tolist()
        longest.append(int(used_N.max()))
        chunks = [
            self._convolve(
                F.embedding(chars_NC[index, : deciding_columns(used, self.options)], table)
            )
            for index, used in zip(torch.split(order_N, _CHUNK_WORDS), longest, strict=False)
        ]
        hidden_NF = torch.cat(chunks)
        for highway in self.highways:
            hidden_NF = highway(hidden_NF)
        if self.projection_weight is not None and self.projection_bias is not None:
            hidden_NF = torch.addmm(self.projection_bias, hidden_NF, self.projection_weight)
        return torch.empty_like(hidden_NF).index_copy(0, order_N, hidden_NF)

    def _convolve(self, chars_NCE: Tensor) -> Tensor:
        """Convolutions, maximum over positions, activation: (N, C, E) to (N, F)."""
        activation = torch.relu if self.options.activation == "relu" else torch.tanh
        parts = []
        for weight, bias in zip(self.conv_weights, self.conv_biases, strict=True):
            _, width, dim, count = weight.shape
            windows = chars_NCE.unfold(1, width, 1).transpose(2, 3).flatten(2)
            scores = windows @ weight.view(width * dim, count)
            parts.append(activation(scores.amax(dim=1) + bias))
        return torch.cat(parts, dim=1)


def deciding_columns(used: int, options: CharCnnOptions) -> int:
    """Columns that decide the maximum: one window of padding only stands for all the others."""
    widest = max(width for width, _ in options.filters)
    return min(used + widest, options.max_characters_per_token)


def used_columns(chars_NC: Tensor, pad: int) -> Tensor:
    """Columns of each word up to its last character that is not padding."""
    place_C = torch.arange(1, chars_NC.shape[1] + 1, device=chars_NC.device)
    return ((chars_NC != pad) * place_C).amax(dim=1)
