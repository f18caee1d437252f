"""One LSTM layer of all directions in training: all steps forward, and all steps backward.

Computes what `lstm.LstmLayer` computes for rows of equal length, and its gradient, as one function
for autograd instead of a graph of every step. On the CPU a step multiplies its input and the
carried output side by side with the whole kernel, and each thread takes some rows of one direction
through all steps, since threads that share every step's product wait for the last one. Elsewhere
the input's product is made once for all steps. The weights' gradients are one product each.

Products may be bfloat16 with float32 sums; cells, weights and their gradients stay float32.

Axes: T steps, B rows, R rows of a part, N = T B positions, P width, D cell width, G = 4 D gates,
F = 2 P factors of a step: its input and the output carried to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from elmo_model.kernels.products import product, stored
from elmo_model.kernels.training_cell import CellTrace, training_cell
from elmo_model.kernels.workers import Workers, run_without_gradient, shared_workers
from elmo_model.state import cell_dtype

# Fewer rows read the weights about as often as more would, so they are not worth a thread.
_MIN_ROWS_PER_PART = 16


class LayerInput(NamedTuple):
    """What one direction's layer needs; a gradient goes to all of it.

    Inputs are in time-major order; the cell and the output are those before the first step, and
    `projection_DP` is None for a layer without one.
    """

    inputs_TBP: Tensor
    cell_BD: Tensor
    output_BP: Tensor
    kernel_FG: Tensor
    bias_G: Tensor
    projection_DP: Tensor | None


class LayerOutput(NamedTuple):
    """What comes out for one direction, and the cell and output after the last step.

    Outputs have the element type of the weights, cells float32 at least.
    """

    outputs_TBP: Tensor
    cell_BD: Tensor
    output_BP: Tensor


@dataclass(frozen=True)
class LayerRule:
    """What is the same for all directions: the clips, None for off, and the products' type."""

    cell_clip: float | None
    proj_clip: float | None
    dtype: torch.dtype


class _Trace(NamedTuple):
    """What the forward pass of one direction leaves for its gradient.

    `factors_TBF` are the inputs and, beside them, the outputs that each step began with;
    `raw_TBP` the outputs before their clip. The last four are those of a `CellTrace`.
    """

    kernel_FG: Tensor
    projection_DP: Tensor | None
    factors_TBF: Tensor
    raw_TBP: Tensor
    gates_TBG: Tensor
    cells_TBD: Tensor
    hidden_TBD: Tensor
    first_BD: Tensor

    def cells(self, clip: float | None) -> CellTrace:
        bound = math.inf if clip is None else clip
        return CellTrace(self.gates_TBG, self.cells_TBD, self.hidden_TBD, self.first_BD, bound)


def run_layer(rule: LayerRule, directions: Sequence[LayerInput]) -> list[LayerOutput]:
    """Run one layer of each direction over its own inputs, as many steps and rows in each."""
    flat = [tensor for direction in directions for tensor in direction]
    results = _Layer.apply(rule, *flat)  # type: ignore[no-untyped-call]
    return [LayerOutput(*part) for part in _groups(results, len(LayerOutput._fields))]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: LayerRule, *tensors: Any) -> tuple[Tensor, ...]:
        directions = [LayerInput(*part) for part in _groups(tensors, len(LayerInput._fields))]
        with torch.autocast(directions[0].kernel_FG.device.type, enabled=False):
            traces = _forward(rule, directions)
        ctx.rule = rule
        ctx.save_for_backward(*(tensor for trace in traces for tensor in trace))
        return tuple(
            result
            for trace, given in zip(traces, directions, strict=True)
            for result in _results(rule, trace, given)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        traces = [_Trace(*part) for part in _groups(ctx.saved_tensors, len(_Trace._fields))]
        given = [LayerOutput(*part) for part in _groups(grads, len(LayerOutput._fields))]
        results = [
            _Gradients(ctx.rule, trace, grad) for trace, grad in zip(traces, given, strict=True)
        ]
        _run_parts(results)
        workers = _workers(traces[0].kernel_FG.device)
        num_chunks = max(1, workers.num_threads // len(results))
        run_without_gradient(
            workers, (call for one in results for call in one.weight_calls(num_chunks))
        )
        return (None, *(tensor for one in results for tensor in one.results()))


def _forward(rule: LayerRule, directions: Sequence[LayerInput]) -> list[_Trace]:
    runs = [_Forward(rule, given) for given in directions]
    _run_parts(runs)
    return [run.trace for run in runs]


def _results(rule: LayerRule, trace: _Trace, given: LayerInput) -> LayerOutput:
    outputs = trace.raw_TBP
    if rule.proj_clip is not None:
        outputs = outputs.clamp(-rule.proj_clip, rule.proj_clip)
    # Copies: a result must not be a part of another, nor of what is kept for the gradient.
    outputs = outputs.to(given.kernel_FG.dtype, copy=outputs is trace.raw_TBP)
    cell = trace.cells(rule.cell_clip).last_cell().to(given.cell_BD.dtype)
    return LayerOutput(outputs, cell, outputs[-1].clone())


class _Forward:
    """The forward pass of one direction; parts may run side by side after `prepare`."""

    def __init__(self, rule: LayerRule, given: LayerInput) -> None:
        num_steps, num_rows, width = given.inputs_TBP.shape
        dtype = rule.dtype
        factors = given.kernel_FG.new_empty(num_steps, num_rows, 2 * width, dtype=dtype)
        cells = CellTrace.empty(num_steps, given.cell_BD, rule.cell_clip, dtype)
        raw = cells.outputs_TBD
        if given.projection_DP is not None:
            raw = factors.new_empty(num_steps, num_rows, width)
        self.trace = _Trace(
            given.kernel_FG, given.projection_DP, factors, raw,
            cells.gates_TBG, cells.cells_TBD, cells.outputs_TBD, cells.first_BD,
        )  # fmt: skip
        self._rule, self._given, self._cells = rule, given, cells

    def prepare(self) -> None:
        given, dtype = self._given, self._rule.dtype
        width = given.inputs_TBP.shape[2]
        self.trace.factors_TBF[:, :, :width] = given.inputs_TBP
        self.trace.factors_TBF[0, :, width:] = given.output_BP
        self._gates = _gate_products(self.trace.factors_TBF, given, dtype)
        if given.projection_DP is not None:
            self._project = stored(given.projection_DP.to(dtype))

    def run(self, rows: slice) -> None:
        factors, raw, hidden = self.trace.factors_TBF, self.trace.raw_TBP, self.trace.hidden_TBD
        num_steps, _, width = raw.shape
        clip = math.inf if self._rule.proj_clip is None else self._rule.proj_clip
        cell = training_cell(self._cells, rows, None, None)
        for step in range(num_steps):
            cell.forward(step, self._gates(step, rows))
            new = hidden[step, rows]
            if self._given.projection_DP is not None:
                new = self._project(new)
                raw[step, rows] = new
            if step + 1 < num_steps:
                torch.clamp(new, -clip, clip, out=factors[step + 1, rows, width:])


def _gate_products(
    factors_TBF: Tensor, given: LayerInput, dtype: torch.dtype
) -> Callable[[int, slice], Tensor]:
    """The gates before their activations, for some rows of a step."""
    kernel, bias = given.kernel_FG.to(dtype), given.bias_G.to(dtype)
    if factors_TBF.device.type == "cpu":
        multiply = stored(kernel, bias)
        return lambda step, rows: multiply(factors_TBF[step, rows])
    # With few rows a step reads weights more than it multiplies: so as few of them as can be.
    num_steps, num_rows, width = given.inputs_TBP.shape
    inputs_NP = factors_TBF[:, :, :width].flatten(0, 1)
    inputs_TBG = product(inputs_NP, kernel[:width], bias).view(num_steps, num_rows, -1)
    return lambda step, rows: torch.addmm(
        inputs_TBG[step, rows], factors_TBF[step, rows, width:], kernel[width:]
    )


class _Gradients:
    """The backward pass of one direction; parts may run side by side after `prepare`."""

    def __init__(self, rule: LayerRule, trace: _Trace, grads: LayerOutput) -> None:
        self.trace = trace
        self._rule, self._grads = rule, grads
        self._is_hoisted = trace.kernel_FG.device.type != "cpu"
        self._cells = trace.cells(rule.cell_clip)
        wide = cell_dtype(rule.dtype)
        self._cell_BD = grads.cell_BD.to(wide, copy=True).contiguous()
        self._gates_TBG = torch.empty_like(trace.gates_TBG)
        self._raw_TBP = torch.empty_like(trace.raw_TBP)
        self._inputs_TBP = torch.empty_like(grads.outputs_TBP)
        self._output_BP = torch.empty_like(grads.output_BP)
        self._bias_parts: dict[int, Tensor] = {}
        self._kernel_FG = torch.empty_like(trace.kernel_FG)
        self._projection_DP = (
            None if trace.projection_DP is None else torch.empty_like(trace.projection_DP)
        )

    def prepare(self) -> None:
        trace, dtype, clip = self.trace, self._rule.dtype, self._rule.proj_clip
        self._closed = None if clip is None else trace.raw_TBP.abs() > clip
        kernel = trace.kernel_FG.to(dtype)
        width = trace.raw_TBP.shape[2]
        self._to_factors = stored((kernel[width:] if self._is_hoisted else kernel).t())
        if trace.projection_DP is not None:
            self._to_hidden = stored(trace.projection_DP.to(dtype).t())

    def run(self, rows: slice) -> None:
        trace, width = self.trace, self.trace.raw_TBP.shape[2]
        bias_G = self._cell_BD.new_zeros(trace.gates_TBG.shape[2])
        self._bias_parts[rows.start] = bias_G
        cell = training_cell(self._cells, rows, self._cell_BD[rows], bias_G)
        carried = self._grads.output_BP[rows]
        for step in reversed(range(len(trace.raw_TBP))):
            grad = self._raw_TBP[step, rows]
            torch.add(self._grads.outputs_TBP[step, rows], carried, out=grad)
            if self._closed is not None:
                grad.masked_fill_(self._closed[step, rows], 0.0)
            gates = self._gates_TBG[step, rows]
            cell.backward(
                step, grad if trace.projection_DP is None else self._to_hidden(grad), gates
            )
            carried = self._to_factors(gates)
            if not self._is_hoisted:
                self._inputs_TBP[step, rows] = carried[:, :width]
                carried = carried[:, width:]
        self._output_BP[rows] = carried

    def weight_calls(self, num_chunks: int) -> Iterator[Callable[[], None]]:
        """Calls that make the gradients of the weights, and of the inputs if `run` did not."""
        trace = self.trace
        factors_NF, gates_NG = trace.factors_TBF.flatten(0, 1), self._gates_TBG.flatten(0, 1)
        chunks = zip(
            factors_NF.tensor_split(num_chunks, 1),
            self._kernel_FG.tensor_split(num_chunks),
            strict=True,
        )
        for factors, grad in chunks:
            yield partial(_transposed_product, factors, gates_NG, grad)
        if self._projection_DP is not None:
            hidden_ND, raw_NP = trace.hidden_TBD.flatten(0, 1), self._raw_TBP.flatten(0, 1)
            yield partial(_transposed_product, hidden_ND, raw_NP, self._projection_DP)
        if self._is_hoisted:
            width = trace.raw_TBP.shape[2]
            yield partial(
                _transposed_product,
                gates_NG.t(),
                trace.kernel_FG[:width].to(gates_NG.dtype).t(),
                self._inputs_TBP.view(-1, width),
            )

    def results(self) -> LayerInput:
        """Gradients, in the places of what they belong to."""
        # In a fixed order, whichever thread was first: equal seeds give equal bits.
        bias_G = torch.stack([part for _, part in sorted(self._bias_parts.items())]).sum(0)
        return LayerInput(
            self._inputs_TBP,
            self._cell_BD.to(self._grads.cell_BD.dtype),
            self._output_BP,
            self._kernel_FG,
            bias_G.to(self._kernel_FG.dtype),
            self._projection_DP,
        )


def _transposed_product(left_KM: Tensor, right_KN: Tensor, into_MN: Tensor) -> None:
    into_MN.copy_(product(left_KM.t(), right_KN))


def _run_parts(runs: Sequence[_Forward] | Sequence[_Gradients]) -> None:
    """Prepare all directions, then run rows of each side by side."""
    trace = runs[0].trace
    workers = _workers(trace.kernel_FG.device)
    num_rows = trace.raw_TBP.shape[1]
    num_groups = workers.num_threads // math.gcd(workers.num_threads, len(runs))
    num_groups = max(1, min(num_groups, num_rows // _MIN_ROWS_PER_PART))
    run_without_gradient(workers, (run.prepare for run in runs))
    bounds = [num_rows * group // num_groups for group in range(num_groups + 1)]
    run_without_gradient(
        workers,
        (
            partial(run.run, slice(start, stop))
            for start, stop in zip(bounds, bounds[1:], strict=False)
            for run in runs
        ),
    )


def _workers(device: torch.device) -> Workers:
    """A device other than the CPU is fed by one thread."""
    return shared_workers() if device.type == "cpu" else Workers(1)


def _groups(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
