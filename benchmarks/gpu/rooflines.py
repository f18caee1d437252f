"""What the device allows: rates of the products that a step makes, of copies and of launches."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.device_time import DTYPES, Setting, normal, rates, seconds, spread
from elmo_model.options import LstmOptions

# Calls between two events: one alone would be timed by its launch.
_CALLS = 20


def measure(setting: Setting, lstm: LstmOptions) -> dict[str, Any]:
    """Every rate by name."""
    products = {
        name: {
            str(rows): _products(setting, lstm, rows, dtype, tf32=name == "tf32")
            for rows in setting.rows
        }
        for name, dtype in [*DTYPES.items(), ("tf32", torch.float32)]
    }
    return {
        "products_tflop_per_s": products,
        "copy_gb_per_s": _copies(setting),
        "launch_us": _launches(setting),
    }


def _products(
    setting: Setting, lstm: LstmOptions, rows: int, dtype: torch.dtype, *, tf32: bool
) -> dict[str, Any]:
    """The recurrent product and the projection of both directions at a number of rows."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    width, dim = lstm.projection_dim, lstm.dim
    found = {}
    try:
        for name, inner, outer in (("recurrent", width, 4 * dim), ("projection", dim, width)):
            left = normal(setting, 2, rows, inner, dtype=dtype)
            right = normal(setting, 2, inner, outer, dtype=dtype)
            out = torch.empty(2, rows, outer, device=setting.device, dtype=dtype)
            times = seconds(setting, lambda: _repeat(torch.bmm, left, right, out=out))  # noqa: B023
            found[name] = rates(_CALLS * 4e-12 * rows * inner * outer, times)
    finally:
        torch.set_float32_matmul_precision(before)
    return found


def _repeat(function: Any, *arguments: Any, **named: Any) -> None:
    for _ in range(_CALLS):
        function(*arguments, **named)


def _copies(setting: Setting) -> dict[str, float]:
    """Bytes read and written by a copy of more than any cache holds."""
    size = 1 << (20 if setting.is_dry else 30)
    source = torch.ones(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    times = seconds(setting, lambda: _repeat(target.copy_, source))
    return rates(_CALLS * 2e-9 * size, times)


def _launches(setting: Setting) -> dict[str, float]:
    """Microseconds between the starts of two small operations, launched one by one."""
    small = torch.ones(32, device=setting.device)
    times = seconds(setting, lambda: [_repeat(small.add_, 1.0) for _ in range(10)])
    return spread([1e6 * value / (10 * _CALLS) for value in times])
