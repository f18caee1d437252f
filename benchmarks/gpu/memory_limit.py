"""What happens when a GPU's memory is short: the allocator's own error, and work afterwards."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.device_time import Setting, batch_of
from elmo_model.bilm import BiLM
from elmo_model.devices import free_caches, is_out_of_memory
from elmo_model.kernels.gpu import build_gpu_kernel

_ROOM_BYTES = 512 << 20


def measure(setting: Setting, bilm: BiLM) -> dict[str, Any]:
    """Whether a batch that does not fit is told as such, and a small one comes out as before."""
    if setting.device.type != "cuda":
        return {"left_out": "needs a CUDA device"}
    kernel = build_gpu_kernel(bilm, torch.float16, setting.device)
    small = batch_of(setting, bilm, 64)
    for _ in range(3):  # the third run is a recorded one
        expected, _ = kernel.run(*small)
    large = batch_of(setting, bilm, 8192)
    free_caches()
    total = torch.cuda.get_device_properties(0).total_memory
    share = (torch.cuda.memory_reserved() + _ROOM_BYTES) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    said: BaseException | None = None
    try:
        kernel.run(*large)
    except Exception as error:
        said = error
    finally:
        free_caches()
    try:
        found, _ = kernel.run(*small)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {
        "large_batch_failed": said is not None,
        "told_as_lack_of_memory": said is not None and is_out_of_memory(said),
        "small_batch_as_before": all(
            torch.equal(one, other) for one, other in zip(found, expected, strict=True)
        ),
        "message": str(said)[:300],
    }
