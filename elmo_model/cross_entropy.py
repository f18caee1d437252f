"""Cross-entropy over many words with its gradient, some predictions at a time.

The logits of all predictions never exist together: loss and gradient of a chunk are made before
the next chunk's logits. So the forward pass makes the gradients, and the backward pass scales them.

A prediction's target logit is made apart, and its own column is left out of the others: then the
full softmax is the sampled one whose negatives are all words.

Axes: N predictions, R of a chunk, P width, V words or negatives.
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
from elmo_model.kernels.workers import Workers, run_without_gradient, shared_workers

# What stands for the logit of a negative that is the target itself, as in the reference.
EXCLUDED_LOGIT = torch.finfo(torch.float32).min

# Logits of one chunk: 4 M float32 are 16 MB. A product of fewer rows would mostly read weights.
MAX_CHUNK_LOGITS = 1 << 22
_MIN_CHUNK_ROWS = 128
_MAX_STORED_BYTES = 256 << 20


# By its first row, what a part of a chunk leaves for the words' gradients.
_Kept = dict[int, tuple[Tensor, Tensor, Tensor]]


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
            loss_N, hidden, target = _losses(
                hidden_NP, words, target_logit_N, column_N, 1 / len(hidden_NP)
            )
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
    losses, gradients = [], []
    with torch.autocast(weight_VP.device.type, enabled=False):
        for hidden_NP, targets_N, share in zip(hidden, targets, share_S.tolist(), strict=True):
            target_NP = weight_VP[targets_N]
            logit_N = (hidden_NP * target_NP).sum(1) + bias_V[targets_N]
            loss_N, grad_NP, grad_N = _losses(
                hidden_NP, words, logit_N, targets_N, share / len(hidden_NP)
            )
            grad_NP.addcmul_(target_NP, grad_N[:, None])
            words.weight_grad_VP.index_add_(0, targets_N, hidden_NP * grad_N[:, None])
            words.bias_grad_V.index_add_(0, targets_N, grad_N)
            losses.append(loss_N.mean())
            gradients.append(grad_NP)
    return torch.stack(losses), [words.weight_grad_VP, words.bias_grad_V, *gradients]


def _losses(
    hidden_NP: Tensor, words: _Words, target_logit_N: Tensor, column_N: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (N,), and gradients of `share` times their sum: hidden and target logits."""
    work = _Predictions(hidden_NP, words, target_logit_N, column_N, share)
    workers = shared_workers() if hidden_NP.device.type == "cpu" else Workers(1)
    num_rows, num_words = len(hidden_NP), len(words.bias_V)
    rows = max(_MIN_CHUNK_ROWS, MAX_CHUNK_LOGITS // num_words)
    for start in range(0, num_rows, rows):
        chunk = slices(min(rows, num_rows - start), workers.num_threads)
        parts = [slice(start + part.start, start + part.stop) for part in chunk]
        kept: _Kept = {}  # of this chunk only
        run_without_gradient(workers, [partial(work.predict, part, kept) for part in parts])
        run_without_gradient(
            workers,
            [
                partial(work.add_to, some, [kept[part.start] for part in parts])
                for some in slices(num_words, workers.num_threads)
            ],
        )
    return work.loss_N, work.grad_NP, work.grad_N


class _Predictions:
    """What chunks of predictions read and fill; parts of a chunk may be made side by side."""

    def __init__(
        self, hidden_NP: Tensor, words: _Words, target_N: Tensor, column_N: Tensor, share: float
    ) -> None:
        self.loss_N, self.grad_N = torch.empty_like(target_N), torch.empty_like(target_N)
        self.grad_NP = torch.empty_like(hidden_NP)
        self._hidden, self._target, self._column = hidden_NP, target_N, column_N
        self._words, self._share = words, share
        weight_VP = words.weight_VP
        # Weights are read by every chunk, but a second and a third copy of large ones is too much.
        is_stored = weight_VP.nbytes <= _MAX_STORED_BYTES
        self._logits = stored(weight_VP.t()) if is_stored else partial(_times, weight_VP.t())
        self._back = stored(weight_VP) if is_stored else partial(_times, weight_VP)

    def predict(self, part: slice, kept: _Kept) -> None:
        """Losses of some predictions, all gradients but the words, and what those are made of."""
        hidden_RP, target_R, column_R = self._hidden[part], self._target[part], self._column[part]
        factors_RP = hidden_RP.to(self._words.weight_VP.dtype)
        logits_RV = self._logits(factors_RP).to(self.loss_N.dtype)
        logits_RV += self._words.bias_V
        row_H = torch.nonzero(column_R >= 0).squeeze(1)
        logits_RV.index_put_((row_H, column_R[row_H]), logits_RV.new_tensor(EXCLUDED_LOGIT))
        largest_R = torch.maximum(logits_RV.amax(1), target_R)
        powers_RV = logits_RV.sub_(largest_R[:, None]).exp_()
        target_power_R = torch.exp(target_R - largest_R)
        total_R = powers_RV.sum(1) + target_power_R
        scale_R = self._share / total_R
        self.loss_N[part] = total_R.log() + largest_R - target_R
        self.grad_N[part] = target_power_R * scale_R - self._share
        scaled_RP = (hidden_RP * scale_R[:, None]).to(factors_RP.dtype)
        powers_RV = powers_RV.to(factors_RP.dtype)
        self.grad_NP[part] = self._back(powers_RV) * scale_R[:, None]
        kept[part.start] = (powers_RV, scaled_RP, scale_R.to(factors_RP.dtype))

    def add_to(self, some: slice, kept: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Add a chunk's gradients of some words, part after part in their order."""
        for powers_RV, scaled_RP, scale_R in kept:
            powers_WR = powers_RV[:, some].t()
            self._words.weight_grad_VP[some] += product(powers_WR, scaled_RP)
            self._words.bias_grad_V[some] += powers_WR @ scale_R


def _times(right_KN: Tensor, left_MK: Tensor) -> Tensor:
    return product(left_MK, right_KN)
