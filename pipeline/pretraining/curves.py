"""A picture of a training: losses, held-out perplexity, learning rate and gradient norm.

Needs matplotlib (extra `plots`), which is imported only here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.pretraining.metrics import MAX_METRICS_BYTES, METRICS_NAME
from pipeline.storage import Storage

CURVES_NAME = "curves.png"
# Curves of steps are averaged over this share of all steps, so that they can be read.
SMOOTHED_SHARE = 0.01
_DIRECTIONS = ("forward", "backward")


def draw_curves(storage: Storage) -> str | None:
    """Draw `curves.png` from the metrics in a work directory; returns its URL.

    Returns None where matplotlib is not installed, or there is nothing to draw yet.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if not storage.exists(METRICS_NAME):
        return None
    text = storage.read_bytes(METRICS_NAME, MAX_METRICS_BYTES).decode("utf-8", "replace")
    lines = [json.loads(line) for line in text.splitlines()]
    steps = [line for line in lines if "losses" in line]
    measured = [line["held_out"] for line in lines if "held_out" in line]
    if not steps or not measured:
        return None
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    _draw_losses(panels[0][0], steps)
    _draw_perplexity(panels[0][1], measured)
    _draw(panels[1][0], steps, "learning_rate", "learning rate")
    _draw(panels[1][1], steps, "gradient_norm", "gradient norm before clipping")
    panels[1][1].set_yscale("log")
    for panel in panels.flat:
        panel.set_xlabel("step")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    storage.put(CURVES_NAME, content.getvalue())
    return storage.url_of(CURVES_NAME)


def _draw_losses(panel: Any, steps: Sequence[Mapping[str, Any]]) -> None:
    at = [line["step"] for line in steps]
    for direction, name in enumerate(_DIRECTIONS[: len(steps[0]["losses"])]):
        values = _smoothed([line["losses"][direction] for line in steps])
        panel.plot(at, values, label=name, linewidth=1.2)
    panel.set_title("training loss (of the sampled softmax, where training samples)")
    panel.legend(frameon=False)


def _draw_perplexity(panel: Any, measured: Sequence[Mapping[str, Any]]) -> None:
    at = [line["step"] for line in measured]
    for name in _DIRECTIONS:
        if measured[0][name] is not None:
            panel.plot(at, [line[name] for line in measured], marker="o", markersize=4, label=name)
    last = measured[-1]
    panel.annotate(
        f"{last['mean']:.4g}",
        (last["step"], last["mean"]),
        xytext=(-4, 8),
        textcoords="offset points",
        ha="right",
    )
    panel.set_yscale("log")
    panel.set_title("held-out perplexity")
    panel.legend(frameon=False)


def _draw(panel: Any, steps: Sequence[Mapping[str, Any]], name: str, title: str) -> None:
    panel.plot([line["step"] for line in steps], [line[name] for line in steps], linewidth=1.0)
    panel.set_title(title)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving averages, without a bias at the start."""
    window = max(1.0, len(values) * SMOOTHED_SHARE)
    keep = 1 - 1 / window
    average, weight, smoothed = 0.0, 0.0, []
    for value in values:
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(average / weight)
    return smoothed
