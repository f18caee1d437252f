"""How fast this machine multiplies matrices of a given shape: the roofline of the LSTMs.

Through torch's plain product and through oneDNN with weights laid out beforehand, on all threads
together and, since a product of few rows ends in a barrier, also on every thread for itself. The
same weight is read again and again, as one layer does with its own. Knows no model. Axes: M rows, K
inputs, N outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn import functional as F

Product = Callable[[], Tensor]

# Long enough that a processor which is faster for a moment does not decide.
MIN_SECONDS = 0.2


def plain(inputs: Tensor, weight: Tensor) -> Product:
    """The library that torch chooses itself."""
    return lambda: F.linear(inputs, weight)


def packed(inputs: Tensor, weight: Tensor) -> Product:
    """The weight in oneDNN's own layout."""
    stored = torch.ops.mkldnn._reorder_linear_weight(weight, len(inputs))
    return lambda: torch.ops.mkldnn._linear_pointwise(inputs, stored, None, "none", [], "")


def quantised(inputs: Tensor, weight: Tensor) -> Product:
    """Product of uint8 rows and int8 weights in oneDNN, to float32."""
    num_outputs, num_inputs = weight.shape
    stored = torch.ops.onednn.qlinear_prepack(
        torch.randint(-127, 128, weight.shape, dtype=torch.int8), [len(inputs), num_inputs]
    )
    scale, zero = torch.ones(num_outputs), torch.zeros(num_outputs, dtype=torch.int32)
    rows = torch.randint(0, 256, inputs.shape, dtype=torch.uint8)
    tail = (None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(rows, 1.0, 128, stored, scale, zero, *tail)


WAYS: dict[str, list[tuple[str, torch.dtype, Callable[[Tensor, Tensor], Product]]]] = {
    "float32": [("plain", torch.float32, plain), ("packed", torch.float32, packed)],
    "bfloat16": [("plain", torch.bfloat16, plain), ("packed", torch.bfloat16, packed)],
    "int8": [("packed", torch.float32, quantised)],
}


class GemmRates:
    """Measures products of one shape (M, K) x (K, N) in all ways of an arithmetic.

    `rounds` holds GFLOP/s: {"plain": [...], "packed, 4 alone": [...]}, one entry a `measure`.
    """

    def __init__(self, arithmetic: str, shape: tuple[int, int, int], num_threads: int) -> None:
        """Set up operands; a way that this build of torch lacks is left out."""
        self._shape, self._num_threads = shape, num_threads
        self._products: dict[str, Product] = {}
        self.rounds: dict[str, list[float]] = {}
        num_rows, num_inputs, num_outputs = shape
        for name, dtype, make in WAYS[arithmetic]:
            inputs = torch.randn(num_rows, num_inputs).to(dtype)
            weight = torch.randn(num_outputs, num_inputs).to(dtype)
            try:
                product = make(inputs, weight)
                product()
            except (AttributeError, RuntimeError, TypeError):
                continue
            self._products[name] = product

    def measure(self) -> None:
        """Measure every way once."""
        for name, product in self._products.items():
            self.rounds.setdefault(name, []).append(self._rate(product))
            if self._num_threads > 1:
                alone = self._rate_alone(product)
                self.rounds.setdefault(f"{name}, {self._num_threads} alone", []).append(alone)

    def best_of_rounds(self) -> list[float]:
        """The highest rate of each round, GFLOP/s; empty if the arithmetic is not there."""
        return [max(rates) for rates in zip(*self.rounds.values(), strict=True)]

    def _rate(self, product: Product) -> float:
        started, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < MIN_SECONDS or count < 2:
            product()
            count += 1
        num_rows, num_inputs, num_outputs = self._shape
        return 2e-9 * count * num_rows * num_inputs * num_outputs / elapsed

    def _rate_alone(self, product: Product) -> float:
        def run(_: int) -> float:
            torch.set_num_threads(1)
            return self._rate(product)

        # OpenMP counts threads for each calling thread, torch remembers the last number given.
        with ThreadPoolExecutor(self._num_threads) as pool:
            rates = list(pool.map(run, range(self._num_threads)))
        torch.set_num_threads(self._num_threads)
        return sum(rates)
