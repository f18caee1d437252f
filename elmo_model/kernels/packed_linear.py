"""Matrix products with weights laid out once for the processor. Knows matrices only.

oneDNN's packed product is about twice as fast as the default one on AMD, and gives a row the same
bits whatever rows stand beside it, as long as there are two. torch reaches it through operators
without a promise of stability, so they are tried once, against the plain product, and left alone
where they are missing or wrong.

oneDNN compiles a product for every number of rows that it meets and keeps the last thousand, at
about 1 MB each: so rows are added until their number is one of a few.

Axes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import functools
import sys

import torch
from torch import Tensor
from torch.nn import functional as F

# Fewer rows take other code paths, whose sums differ in the last bits.
MIN_ROWS = 2
_PACKED_FOR_ROWS = 128
# Up to so many rows, multiples of so many are used.
_ROW_STEPS = ((64, 4), (128, 8), (512, 16), (2048, 64), (sys.maxsize, 256))
# Two ways to add 64 products of unit size in bfloat16 or better.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1}


def padded_rows(num_rows: int) -> int:
    """The least number of rows that is used and no less than `num_rows`.

    About 50 numbers up to 512; batches of whole multiples of 32 rows lose 1 % of the work to it.
    """
    if num_rows <= 4:
        return max(num_rows, MIN_ROWS)
    step = next(step for limit, step in _ROW_STEPS if num_rows <= limit)
    return -(-num_rows // step) * step


class PackedLinear:
    """x (M, K) to x W + b (M, N) in the element type of the weights."""

    def __init__(self, weight_KN: Tensor, bias_N: Tensor | None, dtype: torch.dtype) -> None:
        """Lay out weights that multiply from the right; they are copied."""
        weight_NK = weight_KN.detach().t().to(dtype).contiguous()
        # Copied: a view would keep the whole file of weights in memory.
        self._bias = None if bias_N is None else bias_N.detach().to(dtype, copy=True)
        self._packed = can_pack(dtype)
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight_NK, _PACKED_FOR_ROWS)
            if self._packed
            else weight_NK
        )

    def __call__(self, inputs_MK: Tensor) -> Tensor:
        """The product; inputs have the weights' element type."""
        if not self._packed:
            return F.linear(inputs_MK, self._weight, self._bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            _padded(inputs_MK), self._weight, self._bias, "none", [], ""
        )
        return product[: inputs_MK.shape[0]]


class Int8Linear:
    """Quantised rows (M, K) to their products (M, N), without the rows' scale.

    Weights are int8 with one scale a column; stored inputs are uint8 around 128, with a scale for
    each row that the caller applies: so no row's result depends on another row.
    """

    def __init__(self, weight_KN: Tensor, dtype: torch.dtype) -> None:
        """Quantise and lay out weights that multiply from the right; `dtype` is the products'."""
        self._dtype = dtype
        self.num_outputs = weight_KN.shape[1]
        weight_NK = weight_KN.detach().t().float()
        scale_N = weight_NK.abs().amax(1).clamp_min(1e-12) / 127
        stored = (weight_NK / scale_N[:, None]).round().to(torch.int8).contiguous()
        self._scale = scale_N.contiguous()
        self._zero = torch.zeros(len(scale_N), dtype=torch.int32)
        self._weight = torch.ops.onednn.qlinear_prepack(stored, [_PACKED_FOR_ROWS, stored.shape[1]])

    def __call__(self, stored_MK: Tensor) -> Tensor:
        """The product (M, N) of uint8 rows."""
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            _padded(stored_MK), 1.0, 128, self._weight, self._scale, self._zero,
            None, 1.0, 0, self._dtype, "none", [], "",
        )  # fmt: skip
        return product[: stored_MK.shape[0]]


def _padded(rows_MK: Tensor) -> Tensor:
    missing = padded_rows(rows_MK.shape[0]) - rows_MK.shape[0]
    return F.pad(rows_MK, (0, 0, 0, missing)) if missing else rows_MK


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether torch has the packed product for this type, and it is right."""
    if dtype not in _TOLERANCE or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, 64, generator=generator).to(dtype)
    weight = torch.randn(16, 64, generator=generator).to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR_ROWS)
        found = torch.ops.mkldnn._linear_pointwise(inputs, packed, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    expected = inputs.double() @ weight.double().t()
    return bool(((found.double() - expected).abs() < _TOLERANCE[dtype] * 8).all())


@functools.cache
def can_quantise() -> bool:
    """Whether torch has the int8 product, and it is right."""
    generator = torch.Generator().manual_seed(1)
    stored = torch.randint(0, 256, (3, 64), generator=generator).to(torch.uint8)
    weight = torch.randint(-127, 128, (64, 16), generator=generator).float()
    weight[0] = 127.0  # so that the scale of every column is 1
    try:
        found = Int8Linear(weight, torch.float32)(stored)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(found, (stored.float() - 128) @ weight)
