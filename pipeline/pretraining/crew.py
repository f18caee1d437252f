"""The workers that learn together: who one is, and how they exchange small values.

Gradients are averaged by torch's DistributedDataParallel; this is for everything else.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Crew(Protocol):
    """One worker's view of all."""

    rank: int
    size: int

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all workers in the order of their ranks, to the first; None to others."""
        ...

    def share(self, value: Any) -> Any:
        """The first worker's value."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Element by element over all workers; a float64 tensor on the CPU."""
        ...


class Alone:
    """A single worker."""

    rank = 0
    size = 1

    def gather(self, value: Any) -> list[Any] | None:
        """The only value."""
        return [value]

    def share(self, value: Any) -> Any:
        """The same."""
        return value

    def sum(self, values: Tensor) -> Tensor:
        """The same."""
        return values


class DistributedCrew:
    """The processes of torch's default process group."""

    def __init__(self) -> None:
        distributed: Any = torch.distributed
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()
        # Small values stay on the CPU, whatever carries the gradients.
        self._group = distributed.new_group(backend="gloo")
        self._distributed = distributed

    def gather(self, value: Any) -> list[Any] | None:
        """As `Crew.gather`; values are pickled."""
        gathered: list[Any] | None = [None] * self.size if self.rank == 0 else None
        self._distributed.gather_object(value, gathered, dst=0, group=self._group)
        return gathered

    def share(self, value: Any) -> Any:
        """As `Crew.share`; the value is pickled."""
        values = [value]
        self._distributed.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def sum(self, values: Tensor) -> Tensor:
        """As `Crew.sum`."""
        values = values.clone()
        self._distributed.all_reduce(values, group=self._group)
        return values
