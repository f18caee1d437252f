"""Tokens a second of the LSTM stacks alone: our kernel, recorded and not, and what it replaces.

References are the readable modules, one step at a time, and torch's own LSTM with projection (cuDNN
on a GPU), which cannot clip. All read the same packed positions. Marks count as positions, so
figures here are positions a second.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device_time import Setting, batch_of, rates, seconds, spread
from benchmarks.torch_lstm import TorchStacks
from elmo_model.bilm import BiLM
from elmo_model.directory import ModelFiles
from elmo_model.kernels.gpu import GpuKernel, build_gpu_kernel
from elmo_model.kernels.gpu_graphs import CudaRecorder, GraphRunner
from elmo_model.kernels.reference import ReferenceKernel
from elmo_model.packing import PackedLayout
from elmo_model.state import BiLMState
from elmo_model.weights import build

Run = Callable[..., Any]
# Large enough to record every batch that is measured: where recording stops paying is a question.
_RECORD_ROWS, _RECORD_POSITIONS = 1 << 16, 1 << 20
_SAVED_S = 60.0


def measure(
    setting: Setting, files: ModelFiles, bilm: BiLM, rooflines: dict[str, Any]
) -> dict[str, Any]:
    """Rates by arithmetic, way and number of rows; what time did not allow is left out."""
    found: dict[str, Any] = {}
    for name, dtype in [("float16", torch.float16), ("bfloat16", torch.bfloat16), ("tf32", None)]:
        ways = _ways(setting, files, bilm, dtype or torch.float32)
        for rows in setting.rows:
            for like_length in (True, False) if rows == setting.rows[1] else (True,):
                if setting.remaining_s() < _SAVED_S:
                    return {**found, "stopped": f"before {name} at {rows} rows: no time left"}
                key = f"{rows} rows" + ("" if like_length else ", mixed lengths")
                batch = batch_of(setting, bilm, rows, like_length=like_length)
                found.setdefault(name, {})[key] = _rates(setting, ways, batch)
            floor = _floor(bilm, rooflines.get("products_tflop_per_s", {}).get(name, {}), rows)
            found[name][f"{rows} rows"]["products_allow_per_s"] = floor
        del ways
        _release(setting)
    return found


def _ways(
    setting: Setting, files: ModelFiles, bilm: BiLM, dtype: torch.dtype
) -> dict[str, Callable[[], Run]]:
    """What makes each way's function; made one by one, so that one that fails harms no other."""
    tf32 = dtype == torch.float32

    def eager() -> Run:
        kernel = build_gpu_kernel(bilm, dtype, setting.device, tf32=tf32, graphs=False)
        return kernel.run

    def recorded() -> Run:
        kernel = build_gpu_kernel(bilm, dtype, setting.device, tf32=tf32, graphs=False)
        assert isinstance(kernel, GpuKernel)
        runner = GraphRunner(
            kernel.run_rectangle,
            CudaRecorder() if setting.device.type == "cuda" else _run_now,
            max_rows=_RECORD_ROWS,
            max_positions=_RECORD_POSITIONS,
        )
        kernel.use_graphs(runner)

        def run(*batch: Any) -> Any:
            result = kernel.run(*batch)
            if "failed" in kernel.reason:
                raise RuntimeError(kernel.reason)
            return result

        return run

    def torch_lstm() -> Run:
        state = {name: value.to(setting.device) for name, value in files.state.items()}
        with torch.device(setting.device):
            stacks = TorchStacks(files.options, state, dtype)
        return _with_precision(lambda *batch: stacks.run(*batch[:3]), tf32)

    def reference() -> Run:
        own = build(files.options, files.state).requires_grad_(False).to(setting.device, dtype)
        kernel = ReferenceKernel(own, "benchmark")

        def run(table_UP: Tensor, index_SN: Tensor, layout: PackedLayout, state: BiLMState) -> Any:
            carried = BiLMState(state.cells_SLBD, state.outputs_SLBP.to(dtype))
            return kernel.run(table_UP, index_SN, layout, carried)

        return _with_precision(run, tf32)

    return {
        "ours": eager,
        "ours, recorded": recorded,
        "torch.nn.LSTM": torch_lstm,
        "reference": reference,
    }


def _rates(setting: Setting, ways: dict[str, Callable[[], Run]], batch: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"positions": int(batch[2].step_N.size)}
    for name, make in ways.items():
        if name == "reference" and not setting.is_dry and setting.remaining_s() < 2 * _SAVED_S:
            found[name] = {"left_out": "no time left"}
            continue
        try:
            run = make()
            times = seconds(setting, partial(run, *batch))
            found[name] = {
                "per_s": rates(found["positions"], times),
                "ms": spread([1000 * value for value in times]),
            }
            del run
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        _release(setting)
    return found


def _floor(bilm: BiLM, products: dict[str, Any], rows: int) -> float | None:
    """Positions a second if nothing but products took time, at the rates measured for this size.

    Counted are the recurrent products and projections of all layers, and the input's products of
    all layers but the first, whose share depends on the number of distinct words.
    """
    rates_of_rows = products.get(str(rows))
    if not rates_of_rows:
        return None
    lstm = bilm.options.lstm
    gates = 2e-12 * lstm.projection_dim * 4 * lstm.dim * bilm.options.num_directions
    projection = 2e-12 * lstm.dim * lstm.projection_dim * bilm.options.num_directions
    recurrent = gates * (2 * lstm.n_layers - 1) / rates_of_rows["recurrent"]["median"]
    projected = projection * lstm.n_layers / rates_of_rows["projection"]["median"]
    return float(f"{1 / max(recurrent + projected, 1e-12):.4g}")


def _with_precision(run: Run, tf32: bool) -> Run:
    def wrapped(*batch: Any) -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            return run(*batch)
        finally:
            torch.set_float32_matmul_precision(before)

    return wrapped


def _run_now(function: Callable[[], None]) -> Callable[[], None]:
    """In the place of a recording, for the dry run."""
    return function


def _release(setting: Setting) -> None:
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
