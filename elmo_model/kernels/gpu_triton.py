"""The two pointwise parts of a time step as Triton kernels, one launch each.

Tensors are read where they lie: input gates are gathered by row number inside the kernel, and a
step's rows may be a leading block of longer tensors. Sums and the cell are float32 whatever the
element type. Needs Triton, which comes with a torch that is built for CUDA.

Axes: S directions, R rows of the step, U rows of input gates, D cell width, G = 4 D gate columns
(i, j, f, o), P output width.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from elmo_model.kernels.gpu_weights import StackedLayer

# 8 elements a thread, which in 16 bits is one wide load. Rows share the bias through the cache.
_BLOCK_ROWS = 4
_BLOCK_COLUMNS = 256
_NUM_WARPS = 4


@triton.jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x: tl.tensor) -> tl.tensor:
    """2 sigmoid(2 x) - 1."""
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def clip(x: tl.tensor, LIMIT: tl.constexpr) -> tl.tensor:
    """Between -LIMIT and LIMIT, or as it is if that is None."""
    # A NaN must come out as NaN: who reads the vectors rejects what is not finite.
    if LIMIT is not None:
        x = tl.clamp(x, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    return x


@triton.jit
def _gate(
    recurrent: tl.tensor,
    source: tl.tensor,
    bias: tl.tensor,
    column: tl.tensor,
    mask_RD: tl.tensor,
    mask_D: tl.tensor,
) -> tl.tensor:
    """One of the four gates of a tile: recurrent share, input's share and bias, in float32."""
    total = tl.load(recurrent + column, mask=mask_RD, other=0.0).to(tl.float32)
    total += tl.load(source + column, mask=mask_RD, other=0.0).to(tl.float32)
    return total + tl.load(bias + column, mask=mask_D, other=0.0)


# Steps begin anywhere in the indices: without this each alignment would be compiled anew.
@triton.jit(
    do_not_specialize=["index_stride"], do_not_specialize_on_alignment=["index_SR", "live_1"]
)
def cell_kernel(  # noqa: PLR0913
    gates_SRG: tl.tensor,
    source_SUG: tl.tensor,
    index_SR: tl.tensor,
    bias_SG: tl.tensor,
    live_1: tl.tensor,
    cell_SRD: tl.tensor,
    hidden_SRD: tl.tensor,
    dim: tl.tensor,
    gates_stride: tl.tensor,
    source_stride: tl.tensor,
    index_stride: tl.tensor,
    cell_stride: tl.tensor,
    hidden_stride: tl.tensor,
    CLIP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """A tile of `Pointwise.cell`; `*_stride` is the step from one direction to the next."""
    direction = tl.program_id(2).to(tl.int64)
    row_R = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    live_R = row_R < tl.load(live_1)
    place_D = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mask_D = (place_D < dim)[None, :]
    mask_RD = live_R[:, None] & mask_D
    row_R1 = row_R.to(tl.int64)[:, None]
    column = place_D[None, :]
    word_R1 = tl.load(index_SR + direction * index_stride + row_R, mask=live_R, other=0)[:, None]

    recurrent = gates_SRG + direction * gates_stride + row_R1 * (4 * dim)
    source = source_SUG + direction * source_stride + word_R1 * (4 * dim)
    bias = bias_SG + direction * (4 * dim)
    cells = cell_SRD + direction * cell_stride + row_R1 * dim + column
    kept = sigmoid(_gate(recurrent, source, bias, column + 2 * dim, mask_RD, mask_D))
    new = sigmoid(_gate(recurrent, source, bias, column, mask_RD, mask_D))
    new *= tanh(_gate(recurrent, source, bias, column + dim, mask_RD, mask_D))
    cell = clip(kept * tl.load(cells, mask=mask_RD, other=0.0) + new, CLIP)
    tl.store(cells, cell, mask=mask_RD)
    shown = sigmoid(_gate(recurrent, source, bias, column + 3 * dim, mask_RD, mask_D))
    hidden = hidden_SRD + direction * hidden_stride + row_R1 * dim + column
    tl.store(hidden, (shown * tanh(cell)).to(hidden_SRD.dtype.element_ty), mask=mask_RD)


@triton.jit(do_not_specialize_on_alignment=["live_1"])
def carry_kernel(  # noqa: PLR0913
    projected_SRP: tl.tensor,
    inputs_SRP: tl.tensor,
    live_1: tl.tensor,
    output_SRP: tl.tensor,
    packed_SRP: tl.tensor,
    width: tl.tensor,
    projected_stride: tl.tensor,
    inputs_stride: tl.tensor,
    output_stride: tl.tensor,
    packed_stride: tl.tensor,
    CLIP: tl.constexpr,
    ADDS_INPUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """A tile of `Pointwise.carry`; `*_stride` is the step from one direction to the next."""
    direction = tl.program_id(2).to(tl.int64)
    row_R = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    place_P = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row_R < tl.load(live_1))[:, None] & (place_P < width)[None, :]
    place = row_R.to(tl.int64)[:, None] * width + place_P[None, :]
    value = tl.load(projected_SRP + direction * projected_stride + place, mask=mask, other=0.0)
    value = clip(value.to(tl.float32), CLIP)
    element = output_SRP.dtype.element_ty
    tl.store(output_SRP + direction * output_stride + place, value.to(element), mask=mask)
    if ADDS_INPUT:
        value += tl.load(inputs_SRP + direction * inputs_stride + place, mask=mask, other=0.0)
    tl.store(packed_SRP + direction * packed_stride + place, value.to(element), mask=mask)


class TritonPointwise:
    """Launches the kernels of this file."""

    name = "triton"

    def cell(
        self,
        layer: StackedLayer,
        gates_SRG: Tensor,
        source_SUG: Tensor,
        index_SR: Tensor,
        live_1: Tensor,
        cell_SRD: Tensor,
        hidden_SRD: Tensor,
    ) -> None:
        """As in `Pointwise`."""
        cell_kernel[_grid(cell_SRD)](
            gates_SRG,
            source_SUG,
            index_SR,
            layer.bias_SG,
            live_1,
            cell_SRD,
            hidden_SRD,
            layer.dim,
            gates_SRG.stride(0),
            source_SUG.stride(0),
            index_SR.stride(0),
            cell_SRD.stride(0),
            hidden_SRD.stride(0),
            CLIP=layer.cell_clip,
            ROWS=_BLOCK_ROWS,
            COLUMNS=_BLOCK_COLUMNS,
            num_warps=_NUM_WARPS,
        )

    def carry(
        self,
        layer: StackedLayer,
        projected_SRP: Tensor,
        inputs_SRP: Tensor,
        live_1: Tensor,
        output_SRP: Tensor,
        packed_SRP: Tensor,
    ) -> None:
        """As in `Pointwise`."""
        carry_kernel[_grid(projected_SRP)](
            projected_SRP,
            inputs_SRP,
            live_1,
            output_SRP,
            packed_SRP,
            layer.width,
            projected_SRP.stride(0),
            inputs_SRP.stride(0),
            output_SRP.stride(0),
            packed_SRP.stride(0),
            CLIP=layer.proj_clip,
            ADDS_INPUT=layer.adds_input,
            ROWS=_BLOCK_ROWS,
            COLUMNS=_BLOCK_COLUMNS,
            num_warps=_NUM_WARPS,
        )


def _grid(values_SRX: Tensor) -> tuple[int, int, int]:
    directions, rows, columns = values_SRX.shape
    return triton.cdiv(columns, _BLOCK_COLUMNS), triton.cdiv(rows, _BLOCK_ROWS), directions
