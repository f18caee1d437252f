"""Cross-entropy over many words with its gradient, some predictions at a time.

The logits of all predictions never exist together: loss and gradient of a chunk are made before
the next chunk's logits. So the forward pass makes the gradients, and the backward pass scales them.

A prediction's target logit is made apart, and its own column is left out of the others: then the
full softmax is the sampled one whose negatives are all words.

The directions' predictions are one list: N predictions, R some of a chunk, P width, V words or
negatives, S directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from elmo_model.kernels.products import product, product_dtype, slices, stored
from elmo_model.kernels.softmax import Predictions, to_powers
from elmo_model.kernels.workers import Workers, run_without_gradient, shared_workers

# Logits of one chunk. Each chunk reads and writes the words' gradient once, and a product of fewer
# rows would mostly read weights.
MAX_CHUNK_BYTES = 32 << 20
_MIN_CHUNK_ROWS = 128
_ROWS_MULTIPLE = 32
_MAX_STORED_BYTES = 256 << 20


# By its number, what a part of a chunk leaves for the words' gradients: powers and scaled vectors.
_Kept = dict[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Words:
    """The words to choose from, and room for their gradients, to which chunks add."""

    weight_VP: Tensor
    bias_V: Tensor
    weight_grad_VP: Tensor
    bias_grad_V: Tensor


def sampled_loss(
    hidden_NP: Tensor,
    negative_VP: Tensor,
    offset_V: Tensor,
    target_logit_N: Tensor,
    column_N: Tensor,
) -> Tensor:
    """Mean cross-entropy of targets against the same negatives for all, with gradient.

    Args:
        hidden_NP: what predicts.
        negative_VP: the negatives' weights.
        offset_V: what is added to their logits.
        target_logit_N: the targets' logits.
        column_N: int64; the negative that is the target itself and does not count, -1 for none.
    """
    dtype = product_dtype(negative_VP)
    loss: Tensor = _SampledLoss.apply(  # type: ignore[no-untyped-call]
        dtype, hidden_NP, negative_VP, offset_V, target_logit_N, column_N
    )
    return loss


def full_losses(
    weight_VP: Tensor, bias_V: Tensor, hidden: Sequence[Tensor], targets: Sequence[Tensor]
) -> Tensor:
    """Mean cross-entropy (S,) of each direction over all words, with gradient.

    The directions share one gradient of the weights, which is ready if all losses have the same
    share in what is differentiated; else it is made again.

    Args:
        weight_VP: the words' weights.
        bias_V: their biases.
        hidden: per direction (N, P).
        targets: per direction (N,) int64.
    """
    dtype = product_dtype(weight_VP)
    losses_S: Tensor = _FullLosses.apply(  # type: ignore[no-untyped-call]
        dtype, targets, weight_VP, bias_V, *hidden
    )
    return losses_S


class _SampledLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        dtype: torch.dtype,
        hidden_NP: Tensor,
        negative_VP: Tensor,
        offset_V: Tensor,
        target_logit_N: Tensor,
        column_N: Tensor,
    ) -> Tensor:
        words = _Words(
            negative_VP.to(dtype),
            offset_V,
            torch.zeros_like(negative_VP),
            torch.zeros_like(offset_V),
        )
        with torch.autocast(hidden_NP.device.type, enabled=False):
            share_N = torch.full_like(target_logit_N, 1 / len(hidden_NP))
            loss_N, hidden, target = _losses(hidden_NP, words, target_logit_N, column_N, share_N)
        ctx.save_for_backward(hidden, words.weight_grad_VP, words.bias_grad_V, target)
        return loss_N.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(saved * grad for saved in ctx.saved_tensors), None)


class _FullLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        dtype: torch.dtype,
        targets: Sequence[Tensor],
        weight_VP: Tensor,
        bias_V: Tensor,
        *hidden: Tensor,
    ) -> Tensor:
        losses_S, gradients = _full_losses(
            dtype, weight_VP, bias_V, hidden, targets, torch.ones(len(hidden))
        )
        ctx.save_for_backward(weight_VP, bias_V, *hidden)
        ctx.dtype, ctx.targets, ctx.gradients = dtype, targets, gradients
        return losses_S

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor | None, ...]:
        weight_VP, bias_V, *hidden = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or bool((grad_S != grad_S[0]).any()):
            # Asked for again, or with other shares.
            _, gradients = _full_losses(ctx.dtype, weight_VP, bias_V, hidden, ctx.targets, grad_S)
        else:
            # In place: the words' gradient is as large as the words.
            for gradient in gradients:
                gradient.mul_(grad_S[0])
        return (None, None, *gradients)


def _full_losses(
    dtype: torch.dtype,
    weight_VP: Tensor,
    bias_V: Tensor,
    hidden: Sequence[Tensor],
    targets: Sequence[Tensor],
    share_S: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """The losses, and the gradients of their sum weighted by `share_S`: weight, bias, hidden."""
    words = _Words(
        weight_VP.to(dtype), bias_V, torch.zeros_like(weight_VP), torch.zeros_like(bias_V)
    )
    lengths = [len(ids) for ids in targets]
    hidden_NP, targets_N = torch.cat(list(hidden)), torch.cat(list(targets))
    with torch.autocast(weight_VP.device.type, enabled=False):
        share_N = torch.cat(
            [
                bias_V.new_full((length,), share / length)
                for length, share in zip(lengths, share_S.tolist(), strict=True)
            ]
        )
        target_NP = weight_VP[targets_N]
        logit_N = (hidden_NP * target_NP).sum(1) + bias_V[targets_N]
        loss_N, grad_NP, grad_N = _losses(hidden_NP, words, logit_N, targets_N, share_N)
        grad_NP.addcmul_(target_NP, grad_N[:, None])
        words.weight_grad_VP.index_add_(0, targets_N, hidden_NP * grad_N[:, None])
        words.bias_grad_V.index_add_(0, targets_N, grad_N)
    losses_S = torch.stack([loss.mean() for loss in torch.split_with_sizes(loss_N, lengths)])
    gradients = torch.split_with_sizes(grad_NP, lengths)
    return losses_S, [words.weight_grad_VP, words.bias_grad_V, *gradients]


def chunk_rows(num_words: int, element_size_bytes: int) -> int:
    """About how many predictions are made at a time, over so many words."""
    return max(_MIN_CHUNK_ROWS, MAX_CHUNK_BYTES // (num_words * element_size_bytes))


def _losses(
    hidden_NP: Tensor, words: _Words, target_logit_N: Tensor, column_N: Tensor, share_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (N,), and gradients of their sum weighted by `share_N`: hidden and target logits."""
    workers = shared_workers() if hidden_NP.device.type == "cpu" else Workers(1)
    work = _Work(hidden_NP, words, target_logit_N, column_N, share_N, workers.num_threads)
    num_rows, num_words = len(hidden_NP), len(words.bias_V)
    rows = chunk_rows(num_words, words.weight_VP.element_size())
    for chunk in slices(num_rows, -(-num_rows // rows), multiple_of=_ROWS_MULTIPLE):
        parts = slices(chunk.stop - chunk.start, workers.num_threads)
        kept: _Kept = {}  # of this chunk only
        run_without_gradient(
            workers,
            [
                partial(
                    work.predict,
                    slice(chunk.start + part.start, chunk.start + part.stop),
                    number,
                    kept,
                )
                for number, part in enumerate(parts)
            ],
        )
        run_without_gradient(
            workers,
            [
                partial(work.add_to, some, [kept[number] for number in range(len(parts))])
                for some in slices(num_words, workers.num_threads)
            ],
        )
    words.bias_grad_V.add_(work.bias_grad_KV.sum(0))
    return work.loss_N, work.grad_NP, work.grad_N


class _Work:
    """What chunks of predictions read and fill; K parts of a chunk may be made side by side."""

    def __init__(
        self,
        hidden_NP: Tensor,
        words: _Words,
        target_N: Tensor,
        column_N: Tensor,
        share_N: Tensor,
        num_parts: int,
    ) -> None:
        self._target, self._column = target_N.contiguous(), column_N.contiguous()
        self._hidden, self._words, self._share = hidden_NP, words, share_N
        self.loss_N, self.grad_N, self._scale_N = (torch.empty_like(self._target) for _ in "lgs")
        self.grad_NP = torch.empty_like(hidden_NP)
        self.bias_grad_KV = words.bias_grad_V.new_zeros(num_parts, len(words.bias_grad_V))
        weight_VP = words.weight_VP
        # Weights are read by every chunk, but a second and a third copy of large ones is too much.
        is_stored = weight_VP.nbytes <= _MAX_STORED_BYTES
        self._logits = stored(weight_VP.t()) if is_stored else partial(_times, weight_VP.t())
        self._back = stored(weight_VP) if is_stored else partial(_times, weight_VP)

    def predict(self, some: slice, number: int, kept: _Kept) -> None:
        """Losses of a part of a chunk, all gradients but the words', and what those are made of."""
        hidden_RP, scale_R = self._hidden[some], self._scale_N[some]
        factors_RP = hidden_RP.to(self._words.weight_VP.dtype)
        powers_RV = self._logits(factors_RP)
        to_powers(
            powers_RV,
            Predictions(
                bias_V=self._words.bias_V,
                column_R=self._column[some],
                target_R=self._target[some],
                share_R=self._share[some],
                loss_R=self.loss_N[some],
                grad_target_R=self.grad_N[some],
                scale_R=scale_R,
                grad_bias_V=self.bias_grad_KV[number],
            ),
        )
        self.grad_NP[some] = self._back(powers_RV) * scale_R[:, None]
        kept[number] = (powers_RV, (hidden_RP * scale_R[:, None]).to(factors_RP.dtype))

    def add_to(self, some: slice, kept: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add a chunk's gradients of some words, part after part in their order."""
        for powers_RV, scaled_RP in kept:
            self._words.weight_grad_VP[some] += product(powers_RV[:, some].t(), scaled_RP)


def _times(right_KN: Tensor, left_MK: Tensor) -> Tensor:
    return product(left_MK, right_KN)
