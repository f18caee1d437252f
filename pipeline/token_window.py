"""What goes into a vector model and what comes out. Knows arrays only: no torch, files or Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenWindow:
    """Tokenised documents as ids into their distinct words.

    `word_ids` (num_tokens,) int32 runs over all sentences of all documents in order;
    `sentence_lengths` (S,) and `sentences_per_document` (N,) are int64 and cut it up.
    """

    words: list[str]
    word_ids: NDArray[np.int32]
    sentence_lengths: NDArray[np.int64]
    sentences_per_document: NDArray[np.int64]


@dataclass
class BatchCounts:
    """Real and padded tokens that went through the biLM, sentence marks included."""

    num_batches: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0


class VectorModel(Protocol):
    """What turns windows into vectors: the biLM, or a stand-in that measures the pipeline."""

    dim: int
    vector_columns: tuple[str, ...]
    counts: BatchCounts

    def vectors(self, window: TokenWindow) -> NDArray[np.floating]:
        """Vectors (rows, K, dim) of the window's documents, sentences or tokens, in order."""
        ...
