"""Fetch tensors from a GPU without making the host wait for it. Knows nothing else."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Download:
    """A tensor on its way to the memory of the host."""

    def __init__(self, values: Tensor) -> None:
        """Queue the copy behind what the device has still to do."""
        self._values = values
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            # Only into pinned memory is a copy queued. (torch leaves its events without types.)
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(values.device))

    def result(self) -> NDArray[np.floating]:
        """The values; waits until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: NDArray[np.floating] = self._values.numpy()
        return values
