"""From token vectors to sentence and document vectors. Knows tensors only: no text, files or Ray.

K layers out, B sentences and M tokens in a batch, P elements of a direction, D of a vector, S
sentences and N documents in a window.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elmo_model.packed_layers import to_device

Index = NDArray[np.int64]


def reduce_tokens(
    tokens_MKP: Tensor, row_M: Index, time_M: Index, num_rows: int, pooling: str
) -> Tensor:
    """One partial result a sentence, from which its own or its document's vector follows.

    Args:
        tokens_MKP: vectors of the batch's tokens in any order, any floating dtype.
        row_M: sentence of each token; every sentence has at least one.
        time_M: place of each token in its sentence.
        num_rows: sentences, B.
        pooling: mean (gives the sum), max or first.

    Returns: (B, K, P) float32.
    """
    # By sentence and time, so that a sum does not depend on what else is in the batch.
    order_M = np.lexsort((time_M, row_M))
    lengths_B = np.bincount(row_M, minlength=num_rows)
    device = tokens_MKP.device
    if pooling == "first":
        firsts_B = order_M[np.cumsum(lengths_B) - lengths_B]
        return tokens_MKP[to_device(firsts_B, device)].float()
    sorted_MKP = tokens_MKP[to_device(order_M, device)].float()
    reduction = "max" if pooling == "max" else "sum"
    return _reduce_segments(sorted_MKP, to_device(lengths_B, device), reduction)


def finish_sentences(partial_SKD: Tensor, lengths_S: Tensor, pooling: str) -> Tensor:
    """Sentence vectors (S, K, D) from the partial results of `reduce_tokens`."""
    if pooling == "mean":
        return partial_SKD / lengths_S[:, None, None]
    return partial_SKD


def finish_documents(
    partial_SKD: Tensor, lengths_S: Tensor, sentences_N: Tensor, pooling: str
) -> Tensor:
    """Document vectors from the partial results of their sentences, in sentence order.

    Mean is over all tokens of the document (long sentences weigh more), max is element by element,
    first is the document's first token.

    Args:
        partial_SKD: float32, sentences of one document side by side.
        lengths_S: tokens of each sentence.
        sentences_N: int64, sentences of each document, each at least 1.
        pooling: mean, max or first.

    Returns: (N, K, D) float32.
    """
    if pooling == "first":
        return partial_SKD[torch.cumsum(sentences_N, 0) - sentences_N]
    reduction = "max" if pooling == "max" else "sum"
    reduced_NKD = _reduce_segments(partial_SKD, sentences_N, reduction)
    if pooling == "max":
        return reduced_NKD
    tokens_N = _reduce_segments(lengths_S.float(), sentences_N, "sum")
    return reduced_NKD / tokens_N[:, None, None]


def _reduce_segments(values: Tensor, lengths: Tensor, reduction: str) -> Tensor:
    # `unsafe` leaves out a check that the lengths add up, for which the host would wait for a GPU.
    return torch.segment_reduce(values, reduction, lengths=lengths, axis=0, unsafe=True)


def normalize(vectors: Tensor) -> Tensor:
    """Scale the last axis to Euclidean length 1; zero vectors stay zero."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norms.clamp_min(1e-12)
