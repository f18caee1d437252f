"""Sizes and durations as people read them. Knows numbers only."""

from __future__ import annotations


def format_bytes(size_bytes: float) -> str:
    """Return a size with decimal units and three digits: `812 B`, `1.53 MB`, `41.2 GB`."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 999.5 or unit == "TB":
            break
        size /= 1000
    if unit == "B" or size >= 99.95:
        return f"{size:.0f} {unit}"
    return f"{size:.{2 if size < 9.995 else 1}f} {unit}"


def format_duration(duration_s: float) -> str:
    """Return a duration with its two leading units: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 07 min`."""
    if duration_s < 9.95:
        return f"{max(duration_s, 0.0):.1f} s"
    seconds = round(duration_s)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24:02d} h"
