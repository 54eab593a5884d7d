"""The same curves and heat maps as one picture, for a message or a slide."""

from __future__ import annotations

import io
import logging
import warnings
from typing import Any

from moe.common.units import short
from moe.runs.charts import Chart
from moe.runs.heats import Heat
from moe.runs.report import Report
from moe.runs.scales import number
from moe.runs.summary import Summary
from moe.runs.svg import MOST_WORDS, RATIO_BOUNDS

COLOURS = ("#2a6fdb", "#d9622b", "#17936b", "#a345b0", "#b08400", "#0b8a9a", "#c93a5b", "#6b7280")
RATIOS = ("#1c4f9c", "#4a7fc9", "#8fb3e3", "#cbdcf2", "#eeece6", "#f8d9c9", "#f0a98a", "#dc6a48", "#ab2f1c")
INK, SOFT, RULE, MARK, CHANGE = "#1d1d1b", "#6c6b66", "#e4e3de", "#b4690e", "#8a3ffc"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": RULE,
    "legend.frameon": False,
}
MOST_HEATS = 6
MOST_LABELS = 8  # of the rows of a heat map
ROOM = 110  # characters of a legend in the widest chart
SOFTWARE = "moe report"  # written in the picture: it may be replaced


def report_png(report: Report) -> bytes | None:
    """None where nothing was logged."""
    summaries, loss, others = report.summaries, report.loss, report.charts
    heats = (report.by_expert or report.by_layer)[:MOST_HEATS]
    if loss is None and not others:
        return None
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # else it tells of its cache and of fonts
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a letter that no font has, of limits that are the same: the picture stands
        small = (len(others) + 1) // 2 + (len(heats) + 1) // 2
        figure = Figure(figsize=(10, 3.4 + 2.1 * small), layout="constrained", facecolor="white")
        grid = figure.add_gridspec(1 + small, 2, height_ratios=[1.6] + [1] * small)
        size = 13 if len(summaries) == 1 else 10
        figure.suptitle(_plain(title_of(summaries)), x=0.01, ha="left", fontsize=size, fontweight="bold")
        if loss is not None:
            _chart(figure.add_subplot(grid[0, :]), loss, texts=True)
        for number, chart in enumerate(others):
            _chart(figure.add_subplot(grid[1 + number // 2, number % 2]), chart)
        first = 1 + (len(others) + 1) // 2
        for number, heat in enumerate(heats):
            place = grid[first + number // 2, number % 2]
            _heat(figure, figure.add_subplot(place), heat, report.first[0] if len(summaries) > 1 else "")
        picture = io.BytesIO()
        figure.savefig(picture, dpi=110, metadata={"Software": SOFTWARE})
    return picture.getvalue()


def title_of(summaries: dict[str, Summary]) -> str:
    """Each run with its own state."""
    parts = {label: f"{one.state}, step {one.step:,}" for label, one in summaries.items()}
    if len(parts) == 1:
        return "   ".join(next(iter(parts.items())))
    return " and ".join(f"{label} ({state})" for label, state in parts.items())


def _chart(axes: Any, chart: Chart, texts: bool = False) -> None:
    """texts: what was changed is spelt out, not its letter alone."""
    from matplotlib.ticker import MaxNLocator

    for line in chart.lines:
        xs, ys = zip(*line.points, strict=True)
        colour = COLOURS[line.slot % len(COLOURS)]
        for x, low, high in line.bars:
            axes.plot([x, x], [low, high], color=colour, alpha=0.6, linewidth=1)
        if line.style == "faint":
            axes.plot(xs, ys, color=colour, alpha=0.3, linewidth=0.8)
        elif line.style == "dots":
            axes.plot(xs, ys, "o-", color=colour, linewidth=0.8, markersize=3.5, label=_plain(line.label))
        else:
            axes.plot(xs, ys, color=colour, linewidth=1.4, label=_plain(line.label))
    for n, change in enumerate(chart.marks.changes):
        axes.axvline(change.x, color=CHANGE, linewidth=0.9, clip_on=False)
        words = f"{change.letter}: {change.text}" if texts else change.letter
        words = words if len(words) <= MOST_WORDS else words[: MOST_WORDS - 1] + "…"
        low, high = chart.limits_x
        left = change.x > (low + high) / 2
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "annotation_clip": False}
        place |= {"xytext": (-3 if left else 3, 0), "ha": "right" if left else "left", "va": "top"}
        axes.annotate(_plain(words), (change.x, 1.0 - 0.07 * (n % 5)), color=CHANGE, fontsize=7.5, **place)
    for mark in chart.marks.interruptions:
        axes.axvspan(mark.back, mark.x, color="#f0b44a", alpha=0.18, linewidth=0)
        axes.axvline(mark.x, color=MARK, linewidth=0.9, linestyle=(0, (3, 3)), clip_on=False)  # also at the edge
    if chart.log and all(y > 0 for line in chart.lines for _, y in line.points):
        axes.set_yscale("log")
    axes.set_title(_plain(chart.title + (f" ({chart.unit})" if chart.unit else "")))
    axes.set_xlim(*chart.limits_x)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(_tokens)
    axes.grid(axis="y", linewidth=0.7)
    axes.set_axisbelow(True)
    labels = axes.get_legend_handles_labels()[1]
    if len(labels) > 1:
        room = ROOM if texts else ROOM // 2  # else a legend wider than its chart takes the width from it
        above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0)} if texts else {}  # inside stands what was changed
        axes.legend(fontsize=8, ncols=max(1, min(3, room // (max(map(len, labels)) + 6))), **above)


def _heat(figure: Any, axes: Any, heat: Heat, name: str) -> None:
    from matplotlib.colors import BoundaryNorm, ListedColormap

    values = [[float("nan") if value is None else value for value in row] for row in heat.values]
    edges = [0.0, *heat.xs]  # a column ends where its last row of metrics was written
    place = [edges, [*range(len(values) + 1)], values]
    if heat.ratio:
        norm = BoundaryNorm([0, *RATIO_BOUNDS, 1e9], len(RATIOS))
        image = axes.pcolormesh(*place, cmap=ListedColormap(RATIOS), norm=norm)
        bar = figure.colorbar(image, ax=axes, ticks=[0.25, 0.7, 1.43, 4.0], pad=0.01)
        bar.ax.set_yticklabels(["¼", "0.7", "1.4", "4"])
    else:
        bar = figure.colorbar(axes.pcolormesh(*place, cmap="viridis"), ax=axes, pad=0.01)
        if heat.only is not None:
            bar.set_ticks([heat.only], labels=[number(heat.only)])
    bar.outline.set_visible(False)
    axes.invert_yaxis()
    axes.set_title(_plain(f"{heat.title} (by {heat.rows})" + (f", {name}" if name else "")))
    shown = range(0, len(heat.labels), -(-len(heat.labels) // MOST_LABELS))
    axes.set_yticks([row + 0.5 for row in shown], labels=[str(heat.labels[row]) for row in shown])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(_tokens)


def _tokens(value: float, position: int | None = None) -> str:
    return short(value) if value else "0"


def _plain(text: str) -> str:
    """Not as matplotlib's formulas."""
    return text.replace("$", r"\$")
