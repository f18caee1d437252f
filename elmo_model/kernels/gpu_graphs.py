"""Record the launches of small batches once and replay them. Knows no weights and no cell.

A small batch is bound by the cost of launching its kernels, not by their work. A recording has
fixed shapes: a batch is laid out as a rectangle of rows and steps, both rounded up, in which every
row runs to the last step and kernels leave rows alone that have ended. The first batch of a shape
runs without a recording; the second makes it.

Axes: S directions, L layers, B rows, T steps, N positions of the rectangle (step by step), P width
of inputs and outputs, D cell width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elmo_model.packing import PackedLayout
from elmo_model.state import BiLMState
from elmo_model.upload import upload

_ROW_BUCKETS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
_STEP_MULTIPLE = 8
# Beyond this a step's work outweighs its launches, and what a recording keeps outweighs its use.
_MAX_ROWS = 512
_MAX_POSITIONS = 16384
# A rectangle that is emptier than this costs more than it saves, unless it is small.
_MIN_FILL = 0.5
_SMALL_POSITIONS = 1024
_MAX_RECORDINGS = 16

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs a function and returns what repeats its work on the same tensors."""


@dataclass(frozen=True)
class Rectangle:
    """The tensors of a recording, all of which keep their place in memory.

    `inputs_SNP`, `live_T` (int64), `cells_SLBD` and `outputs_SLBP` go in; the last two and
    `outputs_LSNP` come out. Position t B + b is row b at step t.
    """

    rows_T: list[int]
    inputs_SNP: Tensor
    live_T: Tensor
    cells_SLBD: Tensor
    outputs_SLBP: Tensor
    outputs_LSNP: Tensor


def bucket_of(num_rows: int, num_steps: int) -> tuple[int, int]:
    """Rows and steps of the rectangle that a batch is laid out in."""
    largest = _ROW_BUCKETS[-1]
    rows = next((bucket for bucket in _ROW_BUCKETS if bucket >= num_rows), 0)
    rows = rows or -(-num_rows // largest) * largest
    return rows, -(-num_steps // _STEP_MULTIPLE) * _STEP_MULTIPLE


class GraphRunner:
    """Recordings by shape; the one that was not used for longest makes room for a new one."""

    def __init__(
        self,
        run: Callable[[Rectangle], None],
        record: Record,
        *,
        max_rows: int = _MAX_ROWS,
        max_positions: int = _MAX_POSITIONS,
    ) -> None:
        """Take what runs a rectangle, what records it, and the largest batch to record."""
        self._run = run
        self._record: Record | None = record
        self._max_rows = max_rows
        self._max_positions = max_positions
        self._seen: set[tuple[int, int]] = set()
        self._recordings: OrderedDict[tuple[int, int], tuple[Rectangle, Callable[[], None]]] = (
            OrderedDict()
        )
        self.failure: str | None = None

    def __len__(self) -> int:
        return len(self._recordings)

    def forget(self) -> None:
        """Drop all recordings with the memory that they hold, for when memory is short."""
        self._recordings.clear()
        self._seen.clear()

    def wants(self, layout: PackedLayout) -> bool:
        """Whether a batch is worth a recording: small, and not mostly padding."""
        num_positions = layout.step_N.size
        if self._record is None or not num_positions:
            return False
        rows, steps = bucket_of(layout.lengths_B.size, layout.live_rows_T.size)
        filled = rows * steps <= _SMALL_POSITIONS or num_positions >= _MIN_FILL * rows * steps
        return rows <= self._max_rows and rows * steps <= self._max_positions and filled

    def run(
        self,
        table_UP: Tensor,
        index_SN: Tensor,
        layout: PackedLayout,
        live_T: Tensor,
        state: BiLMState,
    ) -> list[Tensor] | None:
        """All layers of a batch, packed; the state, whose rows lie by falling length, is updated.

        Returns: None, with nothing changed, where the batch has to run without a recording: it is
            large, or mostly padding, or the first of its shape, or recording failed.
        """
        if not self.wants(layout):
            return None
        num_rows, num_steps = layout.lengths_B.size, layout.live_rows_T.size
        shape = bucket_of(num_rows, num_steps)
        if shape not in self._seen:
            self._seen.add(shape)
            return None
        # Rows in the order of falling length: the place of a packed position in the rectangle.
        place_N = layout.step_N * shape[0] + layout.inverse_order_B[layout.row_N]
        place = upload(torch.from_numpy(place_N), table_UP.device)
        recording = self._recording(shape, state)
        if recording is None:
            return None
        rectangle, replay = recording
        # Padding reads whatever word was there before: its rows are not live.
        rectangle.inputs_SNP.index_copy_(1, place, table_UP[index_SN])
        rectangle.live_T.zero_()[:num_steps] = live_T
        rectangle.cells_SLBD[:, :, :num_rows] = state.cells_SLBD
        rectangle.outputs_SLBP[:, :, :num_rows] = state.outputs_SLBP
        replay()
        state.cells_SLBD.copy_(rectangle.cells_SLBD[:, :, :num_rows])
        state.outputs_SLBP.copy_(rectangle.outputs_SLBP[:, :, :num_rows])
        return list(rectangle.outputs_LSNP.index_select(2, place).unbind())

    def _recording(
        self, shape: tuple[int, int], state: BiLMState
    ) -> tuple[Rectangle, Callable[[], None]] | None:
        if shape in self._recordings:
            self._recordings.move_to_end(shape)
            return self._recordings[shape]
        assert self._record is not None
        try:
            rectangle = _rectangle(shape, state)
            made = rectangle, self._record(lambda: self._run(rectangle))
        except RuntimeError as error:
            # Also where memory is short: without recordings there is more of it.
            self._record = None
            self._recordings.clear()
            self.failure = str(error)
            return None
        if len(self._recordings) >= _MAX_RECORDINGS:
            self._recordings.popitem(last=False)
        self._recordings[shape] = made
        return made


def _rectangle(shape: tuple[int, int], state: BiLMState) -> Rectangle:
    rows, steps = shape
    cells_SLBD, outputs_SLBP = state.cells_SLBD, state.outputs_SLBP
    directions, layers, _, dim = cells_SLBD.shape
    width = outputs_SLBP.shape[3]
    return Rectangle(
        rows_T=[rows] * steps,
        inputs_SNP=outputs_SLBP.new_zeros(directions, rows * steps, width),
        live_T=torch.zeros(steps, dtype=torch.int64, device=cells_SLBD.device),
        cells_SLBD=cells_SLBD.new_zeros(directions, layers, rows, dim),
        outputs_SLBP=outputs_SLBP.new_zeros(directions, layers, rows, width),
        outputs_LSNP=outputs_SLBP.new_zeros(layers, directions, rows * steps, width),
    )


class CudaRecorder:
    """Records CUDA graphs, which share memory between their steps' products: one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what a function launches; it runs before, so that all is compiled by then."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            function()
        return graph.replay  # holds the graph
