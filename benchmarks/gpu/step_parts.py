"""Where a step's time goes: its two products and two small kernels, each timed alone.

Each part runs many times between two events, on the data that the others left. The parts' sum
against the whole step shows what launching costs; bytes against the copy rate show what a small
kernel could gain. Two choices of the kernel are put to the test as well: how a tile of the cell is
shaped, and whether one direction at a time, whose gates fit into the cache sooner, would be faster.
And a candidate: product and cell in one kernel (fused_step.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device_time import Setting, normal, seconds, spread
from elmo_model.bilm import BiLM
from elmo_model.kernels.gpu import build_gpu_kernel
from elmo_model.kernels.gpu_weights import StackedLayer

_CALLS = 20
# Rows, columns and warps of a tile of the cell's kernel.
_TILES = [
    (1, 512, 2),
    (1, 1024, 4),
    (2, 512, 4),
    (4, 256, 2),
    (4, 256, 4),
    (4, 512, 8),
    (8, 128, 4),
    (8, 256, 8),
]

Part = Callable[[], Any]


def measure(setting: Setting, bilm: BiLM) -> dict[str, Any]:
    """Microseconds a call and GB a second, in float16, by number of rows."""
    kernel: Any = build_gpu_kernel(bilm, torch.float16, setting.device, graphs=False)
    found: dict[str, Any] = {"pointwise": kernel._pointwise.name}
    for rows in setting.rows:
        step = _Step(setting, kernel._layers[1], kernel._pointwise, rows)
        found[str(rows)] = step.alone() | step.by_direction()
        if kernel._pointwise.name == "triton":
            found[str(rows)]["product and cell fused"] = step.fused()
    if kernel._pointwise.name == "triton":
        found["cell tiles, us"] = _tiles(setting, kernel, setting.rows[1])
    return found


class _Step:
    """One step of a deeper layer over random numbers, cut into its parts."""

    def __init__(self, setting: Setting, layer: StackedLayer, pointwise: Any, rows: int) -> None:
        directions, width, dim = layer.bias_SG.shape[0], layer.width, layer.dim
        dtype = layer.input_SPG.dtype
        self._setting, self._layer, self._pointwise = setting, layer, pointwise
        self._shape = directions, rows, width, dim
        self._gates, self._source = (
            normal(setting, directions, rows, 4 * dim, dtype=dtype) for _ in range(2)
        )
        self._index = torch.arange(rows, device=setting.device).expand(directions, -1)
        self._live = torch.tensor([rows], device=setting.device)
        self._cell = normal(setting, directions, rows, dim, dtype=torch.float32)
        self._hidden = normal(setting, directions, rows, dim, dtype=dtype)
        self._output, self._inputs, self._projected, self._packed = (
            normal(setting, directions, rows, width, dtype=dtype) for _ in range(4)
        )

    def alone(self) -> dict[str, Any]:
        """Each part, and all of them one after another."""
        parts: dict[str, Part] = {
            "recurrent product": self._product,
            "cell": self.cell,
            "projection": self._project,
            "carry": self._carry,
        }
        found: dict[str, Any] = {name: _time(self._setting, [part]) for name, part in parts.items()}
        directions, rows, width, dim = self._shape
        size = self._gates.element_size()
        moved = {"cell": dim * (8 * size + 8 + size), "carry": 4 * width * size}
        for name, row_bytes in moved.items():
            rate = directions * rows * row_bytes / found[name]["us"]["median"] / 1000
            found[name]["gb_per_s"] = float(f"{rate:.4g}")
        found["all four, one after another"] = _time(self._setting, list(parts.values()))
        return found

    def by_direction(self) -> dict[str, Any]:
        """Product and cell of both directions at once, and of one after the other."""
        halves: list[Part] = []
        for place in range(self._shape[0]):
            halves += [
                lambda half=slice(place, place + 1): self._product(half),
                lambda half=slice(place, place + 1): self.cell(half),
            ]
        return {
            "product and cell at once": _time(self._setting, [self._product, self.cell]),
            "product and cell by direction": _time(self._setting, halves),
        }

    def fused(self) -> dict[str, Any]:
        """The candidate by tile, and how far its result is from that of the two kernels."""
        from benchmarks.gpu.fused_step import TILES, fused_cell

        source = self._source, self._index
        before = self._cell.clone()
        self._product()
        self.cell()
        expected = self._hidden.float()
        found: dict[str, Any] = {}
        for tile in TILES:
            arguments = (self._layer, self._output, source, self._live, self._cell, self._hidden)
            try:
                self._cell.copy_(before)
                self._hidden.fill_(torch.nan)
                fused_cell(*arguments, tile)
                apart = float((self._hidden.float() - expected).norm() / expected.norm())
                found[str(tile)] = _time(self._setting, [partial(fused_cell, *arguments, tile)])
                found[str(tile)]["relative_difference"] = float(f"{apart:.3g}")
            except Exception as error:
                found[str(tile)] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        return found

    def _product(self, half: slice = slice(None)) -> None:
        weights = self._layer.recurrent_SPG[half]
        torch.bmm(self._output[half], weights, out=self._gates[half])

    def cell(self, half: slice = slice(None)) -> None:
        """The cell's kernel on some of the directions."""
        layer = replace(self._layer, bias_SG=self._layer.bias_SG[half])
        tensors: Sequence[Tensor] = (self._gates, self._source, self._index)
        self._pointwise.cell(
            layer,
            *(tensor[half] for tensor in tensors),
            self._live,
            self._cell[half],
            self._hidden[half],
        )

    def _project(self) -> None:
        assert self._layer.projection_SDP is not None
        torch.bmm(self._hidden, self._layer.projection_SDP, out=self._projected)

    def _carry(self) -> None:
        self._pointwise.carry(
            self._layer, self._projected, self._inputs, self._live, self._output, self._packed
        )


def _tiles(setting: Setting, kernel: Any, rows: int) -> dict[str, Any]:
    from elmo_model.kernels import gpu_triton

    names = ("_BLOCK_ROWS", "_BLOCK_COLUMNS", "_NUM_WARPS")
    before = [getattr(gpu_triton, name) for name in names]
    step = _Step(setting, kernel._layers[1], kernel._pointwise, rows)
    found = {}
    try:
        for tile in _TILES:
            for name, value in zip(names, tile, strict=True):
                setattr(gpu_triton, name, value)
            found["{} rows, {} columns, {} warps".format(*tile)] = _time(setting, [step.cell])["us"]
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(gpu_triton, name, value)
    return found


def _time(setting: Setting, parts: Sequence[Part]) -> dict[str, Any]:
    def repeat() -> None:
        for _ in range(_CALLS):
            for part in parts:
                part()

    times = seconds(setting, repeat)
    return {"us": spread([max(0.001, 1e6 * value / _CALLS) for value in times])}
