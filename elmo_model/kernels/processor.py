"""What the processor says of itself. Knows /proc/cpuinfo; where there is none, nothing is known."""

from __future__ import annotations

from pathlib import Path

_SHOWN = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd")


def processor_name() -> str:
    """The model's name, or `unknown`."""
    return _values(("model name",)).strip() or "unknown"


def processor_features() -> list[str]:
    """Those instruction sets that matter for matrix products."""
    flags = set(_flags())
    return [name for name in _SHOWN if name in flags]


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; torch emulates it elsewhere, slowly."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(_flags()))


def _flags() -> list[str]:
    return _values(("flags", "Features")).split()


def _values(names: tuple[str, ...]) -> str:
    """What stands behind the first line of a name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return next((line.partition(":")[2] for line in lines if line.startswith(names)), "")
