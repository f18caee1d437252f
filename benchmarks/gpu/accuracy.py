"""How near each arithmetic comes to float64, vector by vector, on random weights of real scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device_time import Setting, batch_of
from elmo_model.bilm import BiLM
from elmo_model.directory import ModelFiles
from elmo_model.kernels.gpu import build_gpu_kernel
from elmo_model.kernels.reference import ReferenceKernel
from elmo_model.state import BiLMState
from elmo_model.weights import build

_ARITHMETIC = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
}


def measure(setting: Setting, files: ModelFiles, bilm: BiLM) -> dict[str, Any]:
    """The least and the mean cosine between vectors of each layer, and the largest deviation.

    A vector is one layer's of one direction at one position; the truth is the readable reference
    in float64 with the same weights.
    """
    rows = 8 if setting.is_dry else 256
    table_UP, index_SN, layout, state = batch_of(setting, bilm, rows, like_length=False)
    exact = build(files.options, files.state).requires_grad_(False).to(setting.device).double()
    start = BiLMState(state.cells_SLBD.double(), state.outputs_SLBP.double())
    truth, _ = ReferenceKernel(exact, "truth").run(table_UP, index_SN, layout, start)
    found: dict[str, Any] = {"positions": int(layout.step_N.size)}
    for name, (dtype, tf32) in _ARITHMETIC.items():
        kernel = build_gpu_kernel(bilm, dtype, setting.device, tf32=tf32, graphs=False)
        layers, _ = kernel.run(table_UP, index_SN, layout, state)
        found[name] = [_compare(*pair) for pair in zip(layers, truth, strict=True)]
    return found


def _compare(found_SNP: Tensor, truth_SNP: Tensor) -> dict[str, float]:
    found = found_SNP.double()
    cosine_SN = torch.cosine_similarity(found, truth_SNP, dim=2)
    deviation = float((found - truth_SNP).norm() / truth_SNP.norm())
    return {
        "cosine_least": round(float(cosine_SN.min()), 8),
        "cosine_mean": round(float(cosine_SN.mean()), 8),
        "deviation_relative": float(f"{deviation:.3g}"),
        "deviation_largest": float(f"{float((found - truth_SNP).abs().max()):.3g}"),
    }
