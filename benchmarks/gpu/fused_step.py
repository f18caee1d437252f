# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"
"""A candidate: the recurrent product and the cell in one Triton kernel, so gates never leave it.

It saves writing and reading the recurrent gates, but its product must come near to that of the
library. `step_parts.py` times both; the encoder does not use it.

Axes: S directions, R rows of the step, U rows of input gates, P output width (depth of the
product), D cell width, G = 4 D gate columns (i, j, f, o).
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from elmo_model.kernels.gpu_triton import clip, sigmoid, tanh
from elmo_model.kernels.gpu_weights import StackedLayer


@dataclass(frozen=True)
class Tile:
    """What a program makes: rows and columns of each of the four gates, and how."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


TILES = [
    Tile(128, 64, 64, 8, 3),
    Tile(128, 64, 64, 8, 4),
    Tile(128, 32, 64, 4, 4),
    Tile(64, 64, 64, 4, 4),
    Tile(64, 128, 64, 8, 3),
    Tile(256, 32, 64, 8, 3),
]


@triton.jit
def _rest(
    source: tl.tensor, bias: tl.tensor, column: tl.tensor, mask_RD: tl.tensor, mask_D: tl.tensor
) -> tl.tensor:
    """The input's share of a gate and its bias."""
    total = tl.load(source + column, mask=mask_RD, other=0.0).to(tl.float32)
    return total + tl.load(bias + column, mask=mask_D, other=0.0)


@triton.jit(
    do_not_specialize=["index_stride"], do_not_specialize_on_alignment=["index_SR", "live_1"]
)
def fused_kernel(  # noqa: PLR0913
    output_SRP: tl.tensor,
    recurrent_SPG: tl.tensor,
    source_SUG: tl.tensor,
    index_SR: tl.tensor,
    bias_SG: tl.tensor,
    live_1: tl.tensor,
    cell_SRD: tl.tensor,
    hidden_SRD: tl.tensor,
    dim: tl.tensor,
    output_stride: tl.tensor,
    source_stride: tl.tensor,
    index_stride: tl.tensor,
    cell_stride: tl.tensor,
    hidden_stride: tl.tensor,
    CLIP: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """A tile of the product and of the cell; `*_stride` is the step between directions."""
    direction = tl.program_id(2).to(tl.int64)
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live_R = row_R < tl.load(live_1)
    place_D = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask_D = (place_D < dim)[None, :]
    mask_RD = live_R[:, None] & mask_D
    row_R1 = row_R.to(tl.int64)[:, None]
    column = place_D[None, :]
    depth_K = tl.arange(0, DEPTH)

    left = output_SRP + direction * output_stride + row_R1 * WIDTH + depth_K[None, :]
    right = recurrent_SPG + direction * (WIDTH * 4 * dim) + depth_K[:, None] * (4 * dim) + column
    gate_i = tl.full((ROWS, COLUMNS), 0.0, dtype=tl.float32)
    gate_j = tl.full((ROWS, COLUMNS), 0.0, dtype=tl.float32)
    gate_f = tl.full((ROWS, COLUMNS), 0.0, dtype=tl.float32)
    gate_o = tl.full((ROWS, COLUMNS), 0.0, dtype=tl.float32)
    for start in range(0, WIDTH, DEPTH):
        inside_K = depth_K < WIDTH - start
        carried = tl.load(left + start, mask=live_R[:, None] & inside_K[None, :], other=0.0)
        mask_KD = inside_K[:, None] & mask_D
        weights = right + start * (4 * dim)
        gate_i = tl.dot(carried, tl.load(weights, mask=mask_KD, other=0.0), gate_i)
        gate_j = tl.dot(carried, tl.load(weights + dim, mask=mask_KD, other=0.0), gate_j)
        gate_f = tl.dot(carried, tl.load(weights + 2 * dim, mask=mask_KD, other=0.0), gate_f)
        gate_o = tl.dot(carried, tl.load(weights + 3 * dim, mask=mask_KD, other=0.0), gate_o)

    word_R1 = tl.load(index_SR + direction * index_stride + row_R, mask=live_R, other=0)[:, None]
    source = source_SUG + direction * source_stride + word_R1 * (4 * dim)
    bias = bias_SG + direction * (4 * dim)
    cells = cell_SRD + direction * cell_stride + row_R1 * dim + column
    kept = sigmoid(gate_f + _rest(source, bias, column + 2 * dim, mask_RD, mask_D))
    new = sigmoid(gate_i + _rest(source, bias, column, mask_RD, mask_D))
    new *= tanh(gate_j + _rest(source, bias, column + dim, mask_RD, mask_D))
    cell = clip(kept * tl.load(cells, mask=mask_RD, other=0.0) + new, CLIP)
    tl.store(cells, cell, mask=mask_RD)
    shown = sigmoid(gate_o + _rest(source, bias, column + 3 * dim, mask_RD, mask_D))
    hidden = hidden_SRD + direction * hidden_stride + row_R1 * dim + column
    tl.store(hidden, (shown * tanh(cell)).to(hidden_SRD.dtype.element_ty), mask=mask_RD)


def fused_cell(
    layer: StackedLayer,
    output_SRP: Tensor,
    source: tuple[Tensor, Tensor],
    live_1: Tensor,
    cell_SRD: Tensor,
    hidden_SRD: Tensor,
    tile: Tile,
) -> None:
    """Product and cell of a step, as `torch.bmm` and `Pointwise.cell` make them.

    Args:
        layer: its weights, bias and clip.
        output_SRP: the carried output.
        source: the input's share of the gates (S, U, G), and the row of it that each row reads.
        live_1: how many leading rows are live.
        cell_SRD: float32 state, updated.
        hidden_SRD: sigmoid(o) tanh(cell) is written here.
        tile: how to cut the work.
    """
    source_SUG, index_SR = source
    directions, rows, dim = cell_SRD.shape
    grid = triton.cdiv(rows, tile.rows), triton.cdiv(dim, tile.columns), directions
    fused_kernel[grid](
        output_SRP,
        layer.recurrent_SPG,
        source_SUG,
        index_SR,
        layer.bias_SG,
        live_1,
        cell_SRD,
        hidden_SRD,
        dim,
        output_SRP.stride(0),
        source_SUG.stride(0),
        index_SR.stride(0),
        cell_SRD.stride(0),
        hidden_SRD.stride(0),
        CLIP=layer.cell_clip,
        WIDTH=layer.width,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
