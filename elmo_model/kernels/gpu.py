"""The LSTM stacks on a GPU: both directions in one batched product, two small kernels a step.

The input's product is hoisted out of the recurrence: in the first layer it is made once for each
distinct word and gathered by the cell's kernel, deeper layers make it for a block of steps at a
time. Rows lie by falling length, so the live rows of a step are a leading block and no step works
on padding. Nothing in the loop waits for the GPU. On the CPU the same code serves tests.

Axes: S directions, U distinct words, B rows, R rows of a step, N packed positions, M positions of a
block, P width of inputs and outputs, D cell width, G = 4 D gate columns.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from elmo_model.bilm import BiLM
from elmo_model.devices import is_out_of_memory
from elmo_model.kernels.gpu_buffers import StepBuffers, cut_steps, view_of
from elmo_model.kernels.gpu_graphs import CudaRecorder, GraphRunner, Rectangle
from elmo_model.kernels.gpu_pointwise import Pointwise, TorchPointwise
from elmo_model.kernels.gpu_weights import StackedLayer, stack_layers
from elmo_model.kernels.protocol import StackKernel
from elmo_model.packing import PackedLayout
from elmo_model.state import BiLMState, cell_dtype
from elmo_model.upload import upload

# Gates take 64 KiB a position and direction at original size in 16 bits. Those of distinct words
# are kept together if they need no more than this.
_MAX_TABLE_BYTES = 2 << 30
# Input gates of deeper layers are made for so much at a time: enough rows for a fast product.
_BLOCK_BYTES = 256 << 20


@dataclass(frozen=True)
class Schedule:
    """What the loop runs: rows of each step, known to the host, and how many of them are live.

    In a packed batch all rows of a step are live. A recorded graph runs the same rows at every step
    and leaves the state of those that have ended alone.
    """

    rows_T: Sequence[int]
    live_T: Tensor


def build_gpu_kernel(
    bilm: BiLM,
    dtype: torch.dtype,
    device: torch.device | None = None,
    *,
    tf32: bool = False,
    graphs: bool = True,
) -> StackKernel:
    """The fastest kernel that a device can run. It keeps its own copy of the LSTMs' weights.

    Args:
        bilm: the model, anywhere; float32 weights lose nothing before they are cast.
        dtype: element type of products and outputs: float16, bfloat16 or float32. Sums inside a
            product, gates and cells are float32 always.
        device: where to run; the default is where the model is.
        tf32: let float32 products round their inputs to 11 bits.
        graphs: record small batches as CUDA graphs where there is CUDA.
    """
    device = device or bilm.device
    cuda = device.type == "cuda" and torch.cuda.is_available()
    pointwise, why = _pointwise() if cuda else (TorchPointwise(), "not on CUDA")
    kernel = GpuKernel(stack_layers(bilm, dtype, device), pointwise, tf32=tf32, reason=why)
    if cuda and graphs:
        kernel.use_graphs(GraphRunner(kernel.run_rectangle, CudaRecorder()))
    return kernel


def _pointwise() -> tuple[Pointwise, str]:
    if importlib.util.find_spec("triton") is None:
        return TorchPointwise(), "Triton is not installed: the cell is a dozen torch operations"
    from elmo_model.kernels.gpu_triton import TritonPointwise

    return TritonPointwise(), "CUDA with Triton"


class GpuKernel:
    """Runs all layers of a batch; make one with `build_gpu_kernel`."""

    name = "gpu"

    def __init__(
        self,
        layers: Sequence[StackedLayer],
        pointwise: Pointwise,
        *,
        tf32: bool = False,
        reason: str = "",
    ) -> None:
        """Take weights, and what does the pointwise parts of a step."""
        self.dtype = layers[0].input_SPG.dtype
        self.positions_run = 0
        self._layers = layers
        self._pointwise = pointwise
        self._precision = "high" if tf32 else "highest"
        self.reason = reason
        self.advice = ""
        self._graphs: GraphRunner | None = None

    def use_graphs(self, graphs: GraphRunner | None) -> None:
        """Give batches that `graphs` wants to it; None stops that."""
        self._graphs = graphs

    def run(
        self, table_UP: Tensor, index_SN: Tensor, layout: PackedLayout, state: BiLMState
    ) -> tuple[list[Tensor], BiLMState]:
        """As in `StackKernel`."""
        with torch.no_grad(), _products(self._precision), _current(table_UP.device):
            table_UP = table_UP.to(self.dtype)
            arrays = (layout.order_B, layout.inverse_order_B, layout.live_rows_T)
            joined = upload(torch.from_numpy(np.concatenate(arrays)), table_UP.device)
            order, back, live_T = torch.split(joined, [array.size for array in arrays])
            sorted_state = state.rows(order)
            cells_SLBD = sorted_state.cells_SLBD.to(cell_dtype(self.dtype))
            outputs_SLBP = sorted_state.outputs_SLBP.to(self.dtype)
            schedule = Schedule(layout.live_rows_T.tolist(), live_T)
            running = BiLMState(cells_SLBD, outputs_SLBP)
            done = self._run_recorded(table_UP, index_SN, layout, live_T, running)
            if done is None:
                try:
                    done = self._run_packed(table_UP, index_SN, schedule, cells_SLBD, outputs_SLBP)
                except RuntimeError as error:
                    if self._graphs is not None and is_out_of_memory(error):
                        self._graphs.forget()
                    raise
                self.positions_run += index_SN.shape[1]
            else:
                self.positions_run += len(layout.order_B) * len(layout.live_rows_T)
            return done, running.rows(back)

    def _run_recorded(
        self,
        table_UP: Tensor,
        index_SN: Tensor,
        layout: PackedLayout,
        live_T: Tensor,
        state: BiLMState,
    ) -> list[Tensor] | None:
        """All layers from a recording, the state updated; None where the batch runs without."""
        if self._graphs is None:
            return None
        done = self._graphs.run(table_UP, index_SN, layout, live_T, state)
        if self._graphs.failure is not None:
            self.reason += f"; nothing is recorded, since it failed: {self._graphs.failure}"
            self._graphs = None
        return done

    def run_rectangle(self, rectangle: Rectangle) -> None:
        """All layers where every row runs to the last step; writes into what it is given."""
        schedule = Schedule(rectangle.rows_T, rectangle.live_T)
        inputs_SNP = rectangle.inputs_SNP
        for place, layer in enumerate(self._layers):
            outputs_SNP = rectangle.outputs_LSNP[place]
            state = rectangle.cells_SLBD[:, place], rectangle.outputs_SLBP[:, place]
            self._run_layer(layer, inputs_SNP, None, schedule, state, outputs_SNP)
            inputs_SNP = outputs_SNP

    def _run_packed(
        self,
        table_UP: Tensor,
        index_SN: Tensor,
        schedule: Schedule,
        cells_SLBD: Tensor,
        outputs_SLBP: Tensor,
    ) -> list[Tensor]:
        """All layers of a packed batch; the states (rows by falling length) are updated."""
        results: list[Tensor] = []
        num_gates = self._layers[0].bias_SG.numel()
        table_bytes = table_UP.shape[0] * num_gates * table_UP.element_size()
        index: Tensor | None = index_SN
        inputs_SNP = table_UP.expand(index_SN.shape[0], -1, -1)
        if table_bytes > _MAX_TABLE_BYTES:
            inputs_SNP, index = table_UP[index_SN], None
        for place, layer in enumerate(self._layers):
            outputs_SNP = table_UP.new_empty(*index_SN.shape, layer.width)
            state = cells_SLBD[:, place], outputs_SLBP[:, place]
            self._run_layer(layer, inputs_SNP, index, schedule, state, outputs_SNP)
            results.append(outputs_SNP)
            inputs_SNP, index = outputs_SNP, None
        return results

    def _run_layer(
        self,
        layer: StackedLayer,
        inputs_SUP: Tensor,
        index_SN: Tensor | None,
        schedule: Schedule,
        state: tuple[Tensor, Tensor],
        packed_SNP: Tensor,
    ) -> None:
        """One layer of all directions.

        Args:
            layer: its weights.
            inputs_SUP: inputs by position, or by distinct word if `index_SN` is given.
            index_SN: the word that each direction reads at each position.
            schedule: rows of each step.
            state: cells (S, B, D) and outputs (S, B, P), updated.
            packed_SNP: the layer's outputs, written.
        """
        cell_SBD, output_SBP = state
        room = StepBuffers(layer, max(schedule.rows_T, default=0), packed_SNP)
        start = 0
        for steps, source_SUG, index_SM in self._blocks(layer, inputs_SUP, index_SN, schedule):
            first = start
            for step in steps:
                rows = schedule.rows_T[step]
                stop = start + rows
                live_1 = schedule.live_T[step : step + 1]
                cell_SRD, output_SRP = cell_SBD[:, :rows], output_SBP[:, :rows]
                gates = torch.bmm(output_SRP, layer.recurrent_SPG, out=room.gates(rows))
                index_SR = index_SM[:, start - first : stop - first]
                projected = hidden = room.hidden(rows)
                self._pointwise.cell(layer, gates, source_SUG, index_SR, live_1, cell_SRD, hidden)
                if layer.projection_SDP is not None:
                    projected = room.projected(rows)
                    torch.bmm(hidden, layer.projection_SDP, out=projected)
                inputs_SRP = inputs_SUP[:, start:stop] if layer.adds_input else projected
                self._pointwise.carry(
                    layer, projected, inputs_SRP, live_1, output_SRP, packed_SNP[:, start:stop]
                )
                start = stop

    def _blocks(
        self,
        layer: StackedLayer,
        inputs_SUP: Tensor,
        index_SN: Tensor | None,
        schedule: Schedule,
    ) -> Iterator[tuple[range, Tensor, Tensor]]:
        """Runs of steps with the input's share of their gates, and where each position finds it."""
        num_directions = inputs_SUP.shape[0]
        if index_SN is not None:
            source_SUG = torch.bmm(inputs_SUP, layer.input_SPG)
            yield range(len(schedule.rows_T)), source_SUG, index_SN
            return
        max_positions = _BLOCK_BYTES // (layer.bias_SG.numel() * inputs_SUP.element_size())
        blocks = cut_steps(schedule.rows_T, max_positions)
        counts = [sum(schedule.rows_T[step] for step in block) for block in blocks]
        longest = max(counts, default=0)
        counting_SM = torch.arange(longest, device=inputs_SUP.device).expand(num_directions, -1)
        buffer = inputs_SUP.new_empty(longest * layer.bias_SG.numel())
        start = 0
        for block, count in zip(blocks, counts, strict=True):
            source_SMG = view_of(buffer, num_directions, count, layer.bias_SG.shape[1])
            torch.bmm(inputs_SUP[:, start : start + count], layer.input_SPG, out=source_SMG)
            yield block, source_SMG, counting_SM
            start += count


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one, which is where Triton launches whatever tensors it is given."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _products(precision: str) -> Iterator[None]:
    """Set how float32 products round, and keep sums of 16-bit products in float32."""
    before = torch.get_float32_matmul_precision()
    flags = torch.backends.cuda.matmul
    sums = (
        flags.allow_fp16_reduced_precision_reduction,
        flags.allow_bf16_reduced_precision_reduction,
    )
    torch.set_float32_matmul_precision(precision)
    flags.allow_fp16_reduced_precision_reduction = False
    flags.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        flags.allow_fp16_reduced_precision_reduction = sums[0]
        flags.allow_bf16_reduced_precision_reduction = sums[1]
