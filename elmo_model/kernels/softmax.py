"""The pointwise part of a softmax and its gradient, between the products: in C, or in torch.

Knows neither words nor models. Axes: R predictions, V words beside the target.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from elmo_model.kernels.native import SoftmaxRows, load


@dataclass(frozen=True)
class Predictions:
    """Some predictions: what is read and, from `loss_R` on, where results go.

    Attributes:
        bias_V: what is added to the logits.
        column_R: int64; a word that does not count, -1 for none.
        target_R: the target's logit, which is none of the others.
        share_R: each prediction's weight in the sum whose gradient is made.
        loss_R: -ln p(target).
        grad_target_R: gradient of `target_R`.
        scale_R: what powers are multiplied with to be the gradient of the logits.
        grad_bias_V: to which the bias's gradient is added.
    """

    bias_V: Tensor
    column_R: Tensor
    target_R: Tensor
    share_R: Tensor
    loss_R: Tensor
    grad_target_R: Tensor
    scale_R: Tensor
    grad_bias_V: Tensor


def to_powers(logits_RV: Tensor, of: Predictions) -> None:
    """Turn logits without bias into e^(logit + bias - the row's largest), in place; fill results.

    All tensors are contiguous. Logits may be bfloat16 where all others are float32; powers are
    rounded to it where they are stored, after they were added up.
    """
    library = load().library
    is_native = (
        library is not None
        and logits_RV.device.type == "cpu"
        and logits_RV.dtype in (torch.float32, torch.bfloat16)
        and of.target_R.dtype == of.bias_V.dtype == torch.float32
    )
    if library is not None and is_native:
        _native(library, logits_RV, of)
    else:
        _torch(logits_RV, of)


def _native(library: ctypes.CDLL, logits_RV: Tensor, of: Predictions) -> None:
    num_rows, num_words = logits_RV.shape
    function = getattr(library, f"elmo_softmax_{str(logits_RV.dtype).removeprefix('torch.')}")
    function(
        ctypes.byref(
            SoftmaxRows(
                rows=num_rows,
                words=num_words,
                logits=logits_RV.data_ptr(),
                bias=of.bias_V.data_ptr(),
                column=of.column_R.data_ptr(),
                target=of.target_R.data_ptr(),
                share=of.share_R.data_ptr(),
                loss=of.loss_R.data_ptr(),
                grad_target=of.grad_target_R.data_ptr(),
                scale=of.scale_R.data_ptr(),
                grad_bias=of.grad_bias_V.data_ptr(),
            )
        )
    )


def _torch(logits_RV: Tensor, of: Predictions) -> None:
    row_H = torch.nonzero(of.column_R >= 0).squeeze(1)
    logits_RV.index_put_((row_H, of.column_R[row_H]), logits_RV.new_tensor(-torch.inf))
    # A copy where the element types differ.
    wide_RV = logits_RV.to(of.loss_R.dtype).add_(of.bias_V)
    largest_R = torch.maximum(wide_RV.amax(1), of.target_R)
    powers_RV = wide_RV.sub_(largest_R[:, None]).exp_()
    target_power_R = torch.exp(of.target_R - largest_R)
    total_R = powers_RV.sum(1) + target_power_R
    torch.div(of.share_R, total_R, out=of.scale_R)
    of.loss_R.copy_(total_R.log() + largest_R - of.target_R)
    of.grad_target_R.copy_(target_power_R * of.scale_R - of.share_R)
    of.grad_bias_V.addmv_(powers_RV.t(), of.scale_R)
    if powers_RV is not logits_RV:
        logits_RV.copy_(powers_RV)
