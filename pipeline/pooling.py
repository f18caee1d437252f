"""From token vectors to sentence and document vectors. Knows tensors only: no text, files or Ray.

K layers out, B sentences in a batch, T tokens, D elements, S sentences and N documents in a window.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reduce_tokens(mixed_KBTD: Tensor, mask_BT: Tensor, pooling: str) -> Tensor:
    """One partial result a sentence, from which its own or its document's vector follows.

    Args:
        mixed_KBTD: token vectors, any floating dtype.
        mask_BT: True on real tokens; every sentence has at least one.
        pooling: mean (gives the float32 sum), max or first.

    Returns: (B, K, D) float32. Padding never takes part.
    """
    if pooling == "first":
        return mixed_KBTD[:, :, 0].float().transpose(0, 1)
    masked_KBTD = mixed_KBTD.float()
    if pooling == "max":
        masked_KBTD = masked_KBTD.masked_fill(~mask_BT[None, :, :, None], -torch.inf)
        return masked_KBTD.amax(dim=2).transpose(0, 1)
    return torch.einsum("kbtd,bt->bkd", masked_KBTD, mask_BT.to(masked_KBTD.dtype))


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
    reduced_NKD = torch.segment_reduce(partial_SKD, reduction, lengths=sentences_N, axis=0)
    if pooling == "max":
        return reduced_NKD
    tokens_N = torch.segment_reduce(lengths_S.float(), "sum", lengths=sentences_N)
    return reduced_NKD / tokens_N[:, None, None]


def normalize(vectors: Tensor) -> Tensor:
    """Scale the last axis to Euclidean length 1; zero vectors stay zero."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norms.clamp_min(1e-12)
