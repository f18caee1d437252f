"""Adagrad in one pass over every parameter, and over the touched rows only of a sparse one.

torch has a fused step for dense gradients, and one for sparse gradients in a dozen operations; an
optimiser of torch takes one of them for all. Its state is that of `torch.optim.Adagrad`, so files
of either can be read by the other. Knows parameters and gradients only.

Axes: V rows, U touched rows, P width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adagrad import adagrad

from elmo_model.kernels.workers import run_without_gradient, shared_workers


class Adagrad(torch.optim.Adagrad):
    """acc += g^2, w -= rate g / (sqrt(acc) + eps), as `torch.optim.Adagrad` without decay.

    A sparse gradient must be coalesced; rows without gradient do not move, as in the dense step.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        initial_accumulator_value: float,
        eps: float,
    ) -> None:
        """As `torch.optim.Adagrad`."""
        super().__init__(
            parameters, lr=lr, initial_accumulator_value=initial_accumulator_value, eps=eps
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change the parameters that have a gradient; there is no closure."""
        assert closure is None
        for group in self.param_groups:
            dense: list[nn.Parameter] = []
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if gradient.is_sparse:
                    self._step_rows(parameter, gradient, group)
                else:
                    dense.append(parameter)
            if dense:
                self._step_dense(dense, group)

    def _step_dense(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        if parameters[0].device.type != "cpu":
            self._step_some(parameters, group, foreach=True)
            return
        workers = shared_workers()
        # The largest first, each to the thread that has least.
        parts: list[list[nn.Parameter]] = [[] for _ in range(workers.num_threads)]
        for parameter in sorted(parameters, key=nn.Parameter.numel, reverse=True):
            min(parts, key=lambda part: sum(map(nn.Parameter.numel, part))).append(parameter)
        run_without_gradient(
            workers, [partial(self._step_some, part, group, fused=True) for part in parts if part]
        )

    def _step_some(self, parameters: list[nn.Parameter], group: dict[str, Any], **way: Any) -> None:
        adagrad(
            [parameter.data for parameter in parameters],
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [self.state[parameter]["sum"] for parameter in parameters],
            [self.state[parameter]["step"] for parameter in parameters],
            **way,
            has_sparse_grad=False,
            lr=group["lr"],
            weight_decay=0.0,
            lr_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )

    def _step_rows(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        state["step"] += 1
        rows_U, gradient_UP = gradient._indices()[0], gradient._values()
        sum_UP = state["sum"][rows_U].addcmul_(gradient_UP, gradient_UP)
        state["sum"].index_copy_(0, rows_U, sum_UP)
        moved = gradient_UP / sum_UP.sqrt_().add_(group["eps"])
        parameter.index_add_(0, rows_U, moved, alpha=-float(group["lr"]))
