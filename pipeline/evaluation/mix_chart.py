"""A bar chart of a learned mix as PNG. Needs matplotlib (extra `plots`), imported only here."""

from __future__ import annotations

import io
from importlib.util import find_spec

from pipeline.errors import ConfigError
from pipeline.evaluation.bilms import layer_name
from pipeline.evaluation.tune import Tuned
from pipeline.storage import open_storage, split_pattern


def need_matplotlib() -> None:
    """Make sure that a chart can be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("--chart needs matplotlib: install the extra 'plots'")


def draw_mix(tuned: Tuned, title: str, url: str) -> None:
    """Draw the shares of the layers, and the held-out scores with their intervals beside them.

    Raises:
        ConfigError: matplotlib is not installed.
        StorageError: the store failed.
    """
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    names = [layer_name(place) for place in range(len(tuned.mix.shares))]
    bars = left.barh(names, tuned.mix.shares, color="#3b6ea5")
    left.bar_label(bars, fmt="%.3f", padding=3)
    left.axvline(1 / len(names), color="#888888", linestyle=":", linewidth=1)
    left.set_xlim(0, max(*tuned.mix.shares, 0.5) * 1.2)
    left.set_title(f"share of each layer, gamma {tuned.mix.gamma:.3f}")
    scores = tuned.scores
    values = [score.value for score in scores]
    right.barh(
        [score.name for score in scores],
        values,
        color=["#c7622e" if score.name == "learned mix" else "#b9c4cf" for score in scores],
        xerr=[
            [score.value - score.low for score in scores],
            [score.high - score.value for score in scores],
        ],
        error_kw={"elinewidth": 1, "ecolor": "#333333"},
    )
    right.set_title(f"held-out {tuned.metric}, {tuned.num_test:,} items")
    for panel in (left, right):
        panel.invert_yaxis()
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    directory, name = split_pattern(url)
    open_storage(directory).put(name, content.getvalue())
