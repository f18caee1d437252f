"""What this machine can run the biLM with, and how fast: short measurements for people to read.

Knows the kernels and the processor; no text, configuration or files.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from elmo_model.bilm import BiLM
from elmo_model.devices import TF32, select_device, select_dtype
from elmo_model.errors import ElmoError
from elmo_model.kernels.native import load
from elmo_model.kernels.packed_linear import can_pack, can_quantise
from elmo_model.kernels.processor import (
    has_fast_bfloat16,
    processor_features,
    processor_name,
)
from elmo_model.kernels.selection import select_kernels
from elmo_model.options import ElmoOptions, LstmOptions
from elmo_model.packed_layers import packed_index
from elmo_model.packing import PackedLayout
from elmo_model.state import BiLMState

# Those that some kernel of ours is made for; others would be waited for too long.
CPU_ARITHMETICS = ("float32", "bfloat16", "int8")
GPU_ARITHMETICS = ("float32", "tf32", "float16", "bfloat16")
# One in this many words of a batch is new to it: about what English text has.
_WORDS_PER_TYPE = 4
_NUM_ROWS, _NUM_STEPS, _REPEATS = 64, 8, 3


@dataclass(frozen=True)
class KernelReport:
    """One arithmetic: what would run it and how fast, or why nothing can.

    `tokens_per_s` counts positions of the LSTM stacks alone, without characters and pooling.
    """

    arithmetic: str
    kernel: str | None
    reason: str
    tokens_per_s: float | None


def describe_machine() -> dict[str, str]:
    """Processor, threads, compiler, products and GPUs that kernels are chosen by, to be shown."""
    native = load()
    packs = [name for name in ("float32", "bfloat16") if can_pack(getattr(torch, name))]
    packs += ["int8"] * can_quantise()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": processor_name(),
        "features": " ".join(processor_features()) or "unknown",
        "cores": f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "fused cell": f"in {'torch' if native.library is None else 'C'}, {native.reason}",
        "packed products": ", ".join(packs) or "none: torch's plain ones are used",
        "fast bfloat16": "yes" if has_fast_bfloat16() else "no: it is emulated, use float32",
        "GPUs": ", ".join(gpus) or "none that torch can use",
    }


def default_threads() -> int:
    """Threads that torch takes where nobody says a number."""
    return torch.get_num_threads()


def original_options() -> ElmoOptions:
    """The size of the original model: 4096 cells, 512 projected, two layers."""
    lstm = LstmOptions(
        dim=4096,
        projection_dim=512,
        n_layers=2,
        cell_clip=3.0,
        proj_clip=3.0,
        use_skip_connections=True,
    )
    return ElmoOptions(lstm)


def measure_kernel(
    options: ElmoOptions, device: str, arithmetic: str, num_threads: int
) -> KernelReport:
    """Run a model of this size with random weights for a moment.

    Args:
        options: the model's size; characters are not run.
        device: as `Encoder.from_files`.
        arithmetic: one of `CPU_ARITHMETICS` or `GPU_ARITHMETICS`.
        num_threads: cores to use.
    """
    try:
        place = select_device(device)
        dtype = select_dtype(arithmetic, place)
        bilm = BiLM(replace(options, char_cnn=None), num_words=2).requires_grad_(False)
        kernel = select_kernels(bilm, place, dtype, num_threads, tf32=arithmetic == TF32).stack
    except ElmoError as error:
        return KernelReport(arithmetic, None, str(error), None)
    generator = torch.Generator().manual_seed(1)
    lengths = np.full(_NUM_ROWS, _NUM_STEPS)
    layout = PackedLayout.of(lengths)
    num_words = _NUM_ROWS * _NUM_STEPS // _WORDS_PER_TYPE
    table = torch.randn(num_words, options.lstm.projection_dim, generator=generator)
    ids = torch.randint(num_words, (_NUM_ROWS, _NUM_STEPS), generator=generator).numpy()
    index = packed_index(ids, layout, options.num_directions, place)
    state = BiLMState.zeros(options, _NUM_ROWS, place, kernel.dtype)
    table = table.to(place)
    times_s = []
    for _ in range(1 + _REPEATS):
        started = time.perf_counter()
        kernel.run(table, index, layout, state)
        if place.type == "cuda":
            torch.cuda.synchronize()
        times_s.append(time.perf_counter() - started)
    rate = _NUM_ROWS * _NUM_STEPS / statistics.median(times_s[1:])
    return KernelReport(arithmetic, kernel.name, kernel.reason, rate)
