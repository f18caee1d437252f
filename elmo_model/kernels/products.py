"""Matrix products for training, in float32 or bfloat16 on the CPU and anything elsewhere.

Weights change with every step, so what is laid out for the processor is laid out for one step. The
library that torch chooses itself for float32 is about two thirds as fast on AMD as oneDNN, which is
reached as in packed_linear.py; here both factors may be transposed views, as gradients need them.
Where that cannot be done, torch's own product is used. Knows matrices only.

Axes: M rows, K summed, N columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from elmo_model.kernels.packed_linear import can_pack, padded_rows
from elmo_model.kernels.workers import run_without_gradient, shared_workers

_PACKED_FOR_ROWS = 128
_ROWS_MULTIPLE = 16

Product = Callable[[Tensor], Tensor]


def product(left_MK: Tensor, right_KN: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Left right + bias in the factors' element type; sums are float32 or better.

    oneDNN keeps some code for every shape that it meets: shapes must come from a small set.
    """
    if _is_onednn(left_MK):
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            left_MK, right_KN.t(), bias_N, "none", [], ""
        )
        return result
    if bias_N is None:
        return left_MK @ right_KN
    return torch.addmm(bias_N, left_MK, right_KN)


def product_by_rows(left_MK: Tensor, right_KN: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """As `product`, each thread making some rows: none waits for the others before the end."""
    workers = shared_workers()
    if not _is_onednn(left_MK) or workers.num_threads == 1:
        return product(left_MK, right_KN, bias_N)
    result_MN = left_MK.new_empty(len(left_MK), right_KN.shape[1])

    def make(rows: slice) -> None:
        result_MN[rows] = product(left_MK[rows], right_KN, bias_N)

    parts = slices(len(left_MK), workers.num_threads, multiple_of=_ROWS_MULTIPLE)
    run_without_gradient(workers, (partial(make, rows) for rows in parts))
    return result_MN


def slices(length: int, num_parts: int, multiple_of: int = 1) -> list[slice]:
    """Cut so many rows into at most so many parts of nearly equal length, none empty."""
    size = -(-length // num_parts)
    size = -(-size // multiple_of) * multiple_of
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def stored(right_KN: Tensor, bias_N: Tensor | None = None) -> Product:
    """A function from left (M, K) to left right + bias; lays `right` out once for many calls."""
    if not _is_onednn(right_KN):
        return lambda left_MK: product(left_MK, right_KN, bias_N)
    packed = torch.ops.mkldnn._reorder_linear_weight(right_KN.t(), _PACKED_FOR_ROWS)

    def multiply(left_MK: Tensor) -> Tensor:
        missing = padded_rows(len(left_MK)) - len(left_MK)
        padded = F.pad(left_MK, (0, 0, 0, missing)) if missing else left_MK
        result: Tensor = torch.ops.mkldnn._linear_pointwise(padded, packed, bias_N, "none", [], "")
        return result[: len(left_MK)]

    return multiply


def product_dtype(weight: Tensor) -> torch.dtype:
    """Element type of what is multiplied: autocast's where it is on, else the weight's."""
    device = weight.device.type
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def linear(inputs_MK: Tensor, weight_KN: Tensor, bias_N: Tensor, dtype: torch.dtype) -> Tensor:
    """Inputs weight + bias with gradients, multiplied as `dtype`; M must be one of few sizes."""
    result: Tensor = _Linear.apply(  # type: ignore[no-untyped-call]
        dtype, inputs_MK, weight_KN, bias_N
    )
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, inputs_MK: Tensor, weight_KN: Tensor, bias_N: Tensor
    ) -> Tensor:
        factors_MK = inputs_MK.to(dtype)
        ctx.save_for_backward(factors_MK, weight_KN)
        with torch.autocast(inputs_MK.device.type, enabled=False):
            result = product_by_rows(factors_MK, weight_KN.to(dtype), bias_N.to(dtype))
        return result.to(weight_KN.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor | None, ...]:
        factors_MK, weight_KN = ctx.saved_tensors
        grad = grad_MN.to(factors_MK.dtype)
        inputs = product_by_rows(grad, weight_KN.to(grad.dtype).t()).to(weight_KN.dtype)
        weight = product_by_rows(factors_MK.t(), grad).to(weight_KN.dtype)
        return None, inputs, weight, grad_MN.sum(0)


def _is_onednn(factor: Tensor) -> bool:
    return factor.device.type == "cpu" and can_pack(factor.dtype)
