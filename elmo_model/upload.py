"""Send index tensors to a GPU without making the host wait for it. Knows nothing else."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's memory on a device.

    A copy to a GPU from ordinary memory waits for all that the GPU has still to do; one from pinned
    memory is queued behind it, and torch keeps the pinned pages until the copy is done.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
