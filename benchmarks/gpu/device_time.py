"""Time work on a device, and the model and batches that the benchmarks of a GPU share.

On a GPU times are those of events on its stream; on the CPU, where only a dry run belongs, of the
clock. Knows no kernel.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.random_elmo import options_of, random_model
from elmo_model.bilm import BiLM
from elmo_model.directory import ModelFiles
from elmo_model.packing import PackedLayout
from elmo_model.state import BiLMState
from elmo_model.weights import build

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "everyone", "there", "."]
# Distinct words among the positions of a batch, as measured on prose in batches of this kind.
DISTINCT_SHARE = 0.22
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Setting:
    """Where and how large to measure, and until when."""

    device: torch.device
    size: str
    rows: tuple[int, ...]
    repeats: int
    deadline: float

    @classmethod
    def dry(cls) -> Setting:
        """Tiny sizes on the CPU, to see that everything runs."""
        return cls(torch.device("cpu"), "dry", (4, 8), 1, time.monotonic() + 300)

    @classmethod
    def full(cls, minutes: float) -> Setting:
        """The original's size on the first GPU."""
        deadline = time.monotonic() + 60 * minutes
        return cls(torch.device("cuda"), "original", (256, 1024, 4096), 5, deadline)

    @property
    def is_dry(self) -> bool:
        """Whether figures mean nothing."""
        return self.size == "dry"

    def remaining_s(self) -> float:
        """Seconds until the run has to end."""
        return self.deadline - time.monotonic()


def model_of(setting: Setting) -> tuple[ModelFiles, BiLM]:
    """Random weights of a trained model's scale, on the CPU."""
    options = options_of("small" if setting.is_dry else setting.size)
    if setting.is_dry:
        options = replace(options, lstm=replace(options.lstm, dim=32, projection_dim=16))
    files = random_model(options, WORDS, seed=1)
    return files, build(options, files.state).requires_grad_(False).eval()


def batch_of(setting: Setting, bilm: BiLM, rows: int, *, like_length: bool = True, seed: int = 1):
    """Arguments of `StackKernel.run` for a batch from a zero state, on the setting's device.

    Args:
        setting: where.
        bilm: for its widths.
        rows: sentences.
        like_length: 20 to 26 positions a row, as batches cut by length are; else log-normal
            lengths of mean 24.
        seed: of lengths, vectors and words.
    """
    rng = np.random.default_rng(seed)
    if like_length:
        lengths = rng.integers(20, 27, rows)
    else:
        lengths = np.clip(np.exp(rng.normal(2.9, 0.6, rows)).astype(np.int64) + 2, 3, 80)
    layout = PackedLayout.of(lengths)
    num_positions = layout.step_N.size
    num_words = max(1, int(DISTINCT_SHARE * num_positions))
    lstm = bilm.options.lstm
    generator = torch.Generator().manual_seed(seed)
    table_UP = 0.5 * torch.randn(num_words, lstm.projection_dim, generator=generator)
    shape = (bilm.options.num_directions, num_positions)
    index_SN = torch.randint(0, num_words, shape, generator=generator)
    state = BiLMState.zeros(bilm.options, rows, setting.device, torch.float32)
    return table_UP.to(setting.device), index_SN.to(setting.device), layout, state


def seconds(setting: Setting, function: Callable[[], Any], warm_up: int = 2) -> list[float]:
    """Seconds that each of `setting.repeats` calls keeps the device, after some that do not count.

    A call that is slower to launch than to run is timed by its launches.
    """
    for _ in range(warm_up):
        function()
    times = []
    for _ in range(setting.repeats):
        if setting.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            function()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1000)
        else:
            begun = time.perf_counter()
            function()
            times.append(time.perf_counter() - begun)
    return times


def spread(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum to four digits, whatever their size."""
    middle = statistics.median(values)
    return {
        name: float(f"{value:.4g}")
        for name, value in (("median", middle), ("min", min(values)), ("max", max(values)))
    }


def rates(amount: float, times: list[float]) -> dict[str, float]:
    """Amounts a second of each time."""
    return spread([amount / max(value, 1e-9) for value in times])


def describe_device(setting: Setting) -> dict[str, Any]:
    """The GPU, its memory and CUDA's versions."""
    found: dict[str, Any] = {"device": str(setting.device), "cuda": torch.version.cuda}
    if setting.device.type == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {
            "name": about.name,
            "multiprocessors": about.multi_processor_count,
            "memory_gib": round(about.total_memory / 2**30, 1),
            "l2_mib": round(getattr(about, "L2_cache_size", 0) / 2**20, 1),
            "capability": f"{about.major}.{about.minor}",
            "cudnn": torch.backends.cudnn.version(),
            "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        }
    return found


def normal(setting: Setting, *shape: int, dtype: torch.dtype) -> Tensor:
    """Random numbers where the setting says; products of zeros would run too fast."""
    return torch.randn(*shape, device=setting.device).to(dtype)
