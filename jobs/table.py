"""Rows as an aligned text table. Knows text only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def format_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay out rows under headers: numbers to the right with thousands marks, the rest to the left.

    A column is numeric when all of its cells are int or None; None is shown as `-`. Format
    fractions, sizes and durations before. Without rows only the header stands.
    """
    columns = [[row[index] for row in rows] for index in range(len(headers))]
    right = [
        bool(cells) and all(cell is None or isinstance(cell, int) for cell in cells)
        for cells in columns
    ]
    texts = [[_cell(cell) for cell in row] for row in rows]
    widths = [
        max([len(header), *(len(row[index]) for row in texts)])
        for index, header in enumerate(headers)
    ]
    lines = [list(headers), ["-" * width for width in widths], *texts]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
