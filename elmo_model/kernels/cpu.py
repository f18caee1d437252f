"""Both stacks on the CPU, a batch cut into parts that run on one core each.

A recurrence ends each of its steps in a barrier if many threads share it, and one thread that is
late holds up all. So each thread gets rows of its own instead, of one direction, and runs all of
their steps and layers; the weights are shared. Axes: S directions, U distinct words, B rows, N
packed positions, P width, D cell width, G gates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from elmo_model.kernels.cpu_layer import CpuLayer
from elmo_model.kernels.packed_linear import padded_rows
from elmo_model.kernels.workers import Workers
from elmo_model.packed_layers import to_device
from elmo_model.packing import PackedLayout
from elmo_model.state import BiLMState

# The gates of a batch's distinct words may take so much; more words are gathered step by step.
_MAX_TABLE_BYTES = 512 << 20
# Fewer rows read the weights about as often as more would, so they are not worth a thread.
_MIN_ROWS_PER_PART = 8


class CpuKernel:
    """Runs layers that were made for the CPU; a StackKernel."""

    def __init__(
        self,
        layers_SL: Sequence[Sequence[CpuLayer]],
        *,
        adds_input: bool,
        workers: Workers,
        name: str,
        reason: str,
        advice: str,
    ) -> None:
        """Take the layers of each direction.

        Args:
            layers_SL: for each direction its layers, the lowest first.
            adds_input: whether layers above the first add their input to their output.
            workers: threads to use.
            name: for people to read.
            reason: why this kernel was taken.
            advice: what would make it faster, or nothing.
        """
        self.name, self.reason, self.advice = name, reason, advice
        self.dtype = layers_SL[0][0].dtype
        self.positions_run = 0
        self._layers_SL = layers_SL
        self._adds_input = adds_input
        self._workers = workers

    def run(
        self, table_UP: Tensor, index_SN: Tensor, layout: PackedLayout, state: BiLMState
    ) -> tuple[list[Tensor], BiLMState]:
        """As in `StackKernel`."""
        num_directions, num_positions = index_SN.shape
        dtype = self.dtype
        layers = [
            torch.empty(num_directions, num_positions, table_UP.shape[1], dtype=dtype)
            for _ in self._layers_SL[0]
        ]
        cells, outputs = state.cells_SLBD.clone(), state.outputs_SLBP.to(dtype, copy=True)
        gates_S = self._word_gates(table_UP)
        parts = list(self._parts(layout))
        self.positions_run += sum(padded_rows(live) for part in parts for live in part.live_rows_T)

        def run_part(direction: int, part: _Part) -> None:
            index_N = index_SN[direction, part.positions]
            gates = gates_S[direction] if gates_S else None
            inputs = table_UP[index_N].to(dtype) if gates is None else gates
            for place, layer in enumerate(self._layers_SL[direction]):
                cell = cells[direction, place, part.rows]
                output = outputs[direction, place, part.rows]
                indexed = index_N if place == 0 and gates is not None else None
                result = layer.run(inputs, indexed, part.live_rows_T, cell, output)
                cells[direction, place, part.rows] = cell
                outputs[direction, place, part.rows] = output
                if place and self._adds_input:
                    result += inputs
                layers[place][direction, part.positions] = result
                inputs = result

        self._workers.run_all(
            partial(run_part, direction, part)
            for part in parts
            for direction in range(num_directions)
        )
        return layers, BiLMState(cells, outputs)

    def _word_gates(self, table_UP: Tensor) -> list[Tensor]:
        """The first layers' input gates (U, G) of each direction, or none if they are too large."""
        firsts = [layers[0] for layers in self._layers_SL]
        num_words = table_UP.shape[0]
        made: dict[tuple[int, int], Tensor] = {}
        if num_words * firsts[0].bytes_per_word > _MAX_TABLE_BYTES:
            return []
        # Every direction's words are cut into as many parts as keep all threads busy.
        chunks = table_UP.tensor_split(max(1, min(self._num_groups, num_words // 64)))

        def make(direction: int, number: int) -> None:
            made[direction, number] = firsts[direction].word_gates(chunks[number])

        self._workers.run_all(
            partial(make, direction, number)
            for direction in range(len(firsts))
            for number in range(len(chunks))
        )
        if len(chunks) == 1:
            return [made[direction, 0] for direction in range(len(firsts))]
        return [
            torch.cat([made[direction, number] for number in range(len(chunks))])
            for direction in range(len(firsts))
        ]

    def _parts(self, layout: PackedLayout) -> Iterator[_Part]:
        """Cut a batch's rows into parts of about equal work."""
        num_groups = min(self._num_groups, max(1, len(layout.order_B) // _MIN_ROWS_PER_PART))
        group_B = np.empty_like(layout.order_B)
        group_B[layout.order_B] = np.arange(len(layout.order_B)) % num_groups
        for number in range(num_groups):
            rows = layout.order_B[number::num_groups]
            live_T = PackedLayout.of(layout.lengths_B[rows]).live_rows_T.tolist()
            positions = np.flatnonzero(group_B[layout.row_N] == number)
            device = torch.device("cpu")
            yield _Part(to_device(rows, device), to_device(positions, device), live_T)

    @property
    def _num_groups(self) -> int:
        """Parts of a batch with which each thread gets as many parts of a direction."""
        num_threads = self._workers.num_threads
        return num_threads // math.gcd(num_threads, len(self._layers_SL))


@dataclass(frozen=True)
class _Part:
    """Some rows of a batch, longest first, and their places among the packed positions."""

    rows: Tensor
    positions: Tensor
    live_rows_T: list[int]
