"""Stored context-free vectors of a vocabulary, in the place of the character encoder.

Either trained with a word-input biLM, or dumped from a character model. Knows word ids only: which
word has which id is the vocabulary's business.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TokenEmbedding(nn.Module):
    """A table of vectors (V, P), a row for each line of the vocabulary; `width` is P.

    A new table holds no vectors yet: `BiLM` draws or loads them.
    """

    def __init__(self, num_words: int, width: int, *, is_output: bool = False) -> None:
        """Make the table; `is_output` says whether it is the weights of the output layer, too."""
        super().__init__()
        self.width = width
        self._is_output = is_output
        self.embedding = nn.Parameter(torch.empty(num_words, width))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the vectors: Glorot-uniform as the original, or as an output layer's weights.

        The more words, the smaller the former, far too small for an output layer: the losses'
        gradients pass through it, and a table that both share hardly learned.
        """
        if self._is_output:
            reset_output_weight(self.embedding, generator)
            return
        limit = math.sqrt(6.0 / sum(self.embedding.shape))
        nn.init.uniform_(self.embedding, -limit, limit, generator=generator)

    def forward(self, ids_N: Tensor, *, shifted: bool = False) -> Tensor:
        """The vectors (N, P) of word ids (N,) int64.

        Args:
            ids_N: vocabulary lines counted from 0; with `shifted` from 1, and 0 gives zeros.
            shifted: whether the ids leave room for "no token".
        """
        if not shifted:
            return F.embedding(ids_N, self.embedding)
        vectors = F.embedding((ids_N - 1).clamp(min=0), self.embedding)
        return vectors * (ids_N > 0).unsqueeze(-1)


def reset_output_weight(weight_VP: Tensor, generator: torch.Generator | None = None) -> None:
    """Draw the weights of an output layer over words, N(0, 1 / sqrt(P)), as the original does."""
    nn.init.normal_(weight_VP, std=1 / math.sqrt(weight_VP.shape[1]), generator=generator)
