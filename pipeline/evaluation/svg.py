"""Small charts as SVG text: bars with intervals, stacked shares, points. Knows nothing of scores.

Nothing but elements and attributes comes out: no scripts, no links, no fonts to be fetched.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

LABEL_WIDTH = 190
PLOT_WIDTH = 290
# Of the 12 pixel font in the labels' width; those of Chinese count twice.
LABEL_CHARACTERS = 28
VALUE_WIDTH = 130
ROW_HEIGHT = 22
AXIS_HEIGHT = 24


@dataclass(frozen=True)
class Bar:
    """A bar with its interval; `style` is a class of the page's CSS, `note` stands at the end."""

    label: str
    value: float
    low: float
    high: float
    style: str
    note: str = ""


@dataclass(frozen=True)
class Stack:
    """Shares, in all 1, side by side in one bar."""

    label: str
    shares: Sequence[float]


@dataclass(frozen=True)
class Point:
    """A point in any units; `style` is a class of the CSS, `text` its tooltip."""

    x: float
    y: float
    style: str
    text: str


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from 0 with whiskers; the axis reaches over all intervals, at most to 1."""
    low = min(0.0, *(row.low for row in rows))
    high = max(0.05, *(row.high for row in rows))
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / s <= 6)
    low, high = -step * -(low // step), step * -(-high // step)
    height = len(rows) * ROW_HEIGHT + AXIS_HEIGHT

    def place(value: float) -> float:
        return LABEL_WIDTH + PLOT_WIDTH * (value - low) / (high - low)

    parts = []
    for number in range(round((high - low) / step) + 1):
        at = place(low + number * step)
        bottom = height - AXIS_HEIGHT
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{bottom}"/>')
        parts.append(_text(at, height - 8, f"{low + number * step:.2g}", "axis", "middle"))
    for number, row in enumerate(rows):
        top = number * ROW_HEIGHT
        middle = top + ROW_HEIGHT / 2
        start, end = sorted((place(0.0), place(row.value)))
        tip = f"{row.label}: {row.value:.3f} ({row.low:.3f} to {row.high:.3f})"
        parts += [
            _label(row.label, middle + 4),
            f'<rect class="bar {row.style}" x="{start:.1f}" y="{top + 4}" rx="2" '
            f'width="{max(end - start, 0.5):.1f}" height="{ROW_HEIGHT - 8}">'
            f"<title>{escape(tip)}</title></rect>",
            f'<path class="whisker" d="M{place(row.low):.1f} {middle}H{place(row.high):.1f}'
            f"M{place(row.low):.1f} {middle - 3}v6M{place(row.high):.1f} {middle - 3}v6"
            '"/>',
            _text(LABEL_WIDTH + PLOT_WIDTH + 10, middle + 4, f"{row.value:.3f}", "value"),
            _text(LABEL_WIDTH + PLOT_WIDTH + 52, middle + 4, row.note, "note"),
        ]
    return _svg(title, LABEL_WIDTH + PLOT_WIDTH + VALUE_WIDTH, height, parts)


def stacks(title: str, rows: Sequence[Stack]) -> str:
    """One bar a row, cut into shares; part k has the class `layer-k`."""
    parts = []
    for number, row in enumerate(rows):
        top, at = number * ROW_HEIGHT, float(LABEL_WIDTH)
        parts.append(_label(row.label, top + ROW_HEIGHT / 2 + 4))
        for place, share in enumerate(row.shares):
            width = share * (PLOT_WIDTH + VALUE_WIDTH)
            parts.append(
                f'<rect class="share layer-{place}" x="{at:.1f}" y="{top + 3}" '
                f'width="{width:.1f}" height="{ROW_HEIGHT - 6}">'
                f"<title>{escape(row.label)}, layer {place}: {share:.3f}</title></rect>"
            )
            if width > 40:
                middle = top + ROW_HEIGHT / 2 + 4
                parts.append(_text(at + width / 2, middle, f"{share:.2f}", "inside", "middle"))
            at += width
    width, height = LABEL_WIDTH + PLOT_WIDTH + VALUE_WIDTH, len(rows) * ROW_HEIGHT
    return _svg(title, width, height, parts)


def points(title: str, marks: Sequence[Point], width: int = 300, height: int = 220) -> str:
    """Points scaled to fill the picture, each with its text as a tooltip."""
    xs, ys = [mark.x for mark in marks], [mark.y for mark in marks]
    margin = 16

    def scaled(value: float, values: Sequence[float], size: int) -> float:
        spread = max(values) - min(values) or 1.0
        return margin + (size - 2 * margin) * (value - min(values)) / spread

    parts = [f'<rect class="frame" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}"/>']
    for mark in marks:
        x, y = scaled(mark.x, xs, width), scaled(mark.y, ys, height)
        parts.append(
            f'<circle class="point {mark.style}" cx="{x:.1f}" cy="{y:.1f}" r="6">'
            f"<title>{escape(mark.text)}</title></circle>"
        )
    return _svg(title, width, height, parts)


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width:{width:g}px">{"".join(parts)}</svg>'
    )


def _label(label: str, y: float) -> str:
    """A row's name, its end left out where it is too long; pointing at it shows all of it."""
    widths = [2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in label]
    ends = list(accumulate(widths, initial=0))
    shown = label
    if ends[-1] > LABEL_CHARACTERS:
        shown = label[: sum(end < LABEL_CHARACTERS for end in ends[1:])] + "…"
    return (
        f'<text class="label" x="{LABEL_WIDTH - 8:.1f}" y="{y:.1f}" text-anchor="end">'
        f"{escape(shown)}<title>{escape(label)}</title></text>"
    )


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
