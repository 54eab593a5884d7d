"""Charts and heat maps as inline SVG. Colours are classes, so that the page's light and dark style hold for them.

Decisions:
- Each figure carries its numbers as JSON beside it, for the page's script to show under the pointer; without the script
  everything is drawn all the same.
- Whatever came from a file is escaped here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from html import escape

from moe.common.units import short
from moe.runs.charts import ChangeMark, Chart, Line
from moe.runs.heats import Heat
from moe.runs.scales import SMALLEST, log_ticks, number, tick, ticks

LEFT, RIGHT, TOP, BOTTOM = 46, 12, 16, 26
WIDE = 800  # from here on a figure takes the full row
SLOTS = 8  # colours in the page's style
ROWS = ((16, 16), (40, 9), (80, 4), (160, 3))  # (most rows, height of one)
MOST_WORDS = 80  # characters of a change's text in a chart: what half of the widest one has room for
LEVELS = 9  # of a heat map's colours
RATIO_BOUNDS = (0.25, 0.5, 0.7, 0.9, 1.1, 1.43, 2.0, 4.0)  # symmetric about 1 in the logarithm


def line_chart(chart: Chart, width: int, height: int) -> str:
    """A figure with title, legend, axes and lines; x in tokens."""
    points = [point for line in chart.lines for point in line.points]
    log = chart.log and any(y > 0 for _, y in points)
    x_low, x_high = chart.limits_x
    ends = [y for line in chart.lines for _, *pair in line.bars for y in pair]
    y_low, y_high = _limits([y for y in (*(y for _, y in points), *ends) if y > 0 or not log], log)
    right, bottom = width - RIGHT, height - BOTTOM

    def px(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (right - LEFT)

    def py(y: float) -> float:
        if log:
            y, low, high = math.log(max(y, y_low)), math.log(y_low), math.log(y_high)
        else:
            low, high = y_low, y_high
        return bottom - (y - low) / (high - low) * (bottom - TOP)

    parts = [_x_axis(x_low, x_high, px, bottom, width)]
    for value in log_ticks(y_low, y_high) if log else ticks(y_low, y_high, 5):
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{right}" y1="{py(value):.1f}" y2="{py(value):.1f}"/>')
        parts.append(f'<text class="y" x="{LEFT - 7}" y="{py(value) + 3.5:.1f}">{tick(value)}</text>')
    for mark in chart.marks.interruptions:
        at, back = px(mark.x), px(mark.back)
        parts.append(f'<rect class="again" x="{back:.1f}" y="{TOP}" width="{at - back:.1f}" height="{bottom - TOP}"/>')
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<circle class="mark" cx="{at:.1f}" cy="9" r="7"/>')
        parts.append(f'<text class="mark" x="{at:.1f}" y="12.5">{mark.number}</text>')
    parts += _changes(chart.marks.changes, px, width, bottom)
    for line in chart.lines:
        colour = f"c{line.slot % SLOTS}"
        for x, low, high in line.bars:
            parts.append(
                f'<line class="bar {colour}" x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{py(low):.1f}" y2="{py(high):.1f}"/>'
            )
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in line.points)
        if line.style == "dots" or len(line.points) == 1:
            parts.append(f'<polyline class="thread {colour}" points="{path}"/>')
            parts += [f'<circle class="dot {colour}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3"/>' for x, y in line.points]
        else:
            parts.append(f'<polyline class="{line.style} {colour}" points="{path}"/>')
    data = {
        "frame": [LEFT, TOP, right, bottom],
        "x": [x_low, x_high],
        "y": [y_low, y_high],
        "log": log,
        "lines": [
            [line.label, line.slot % SLOTS, [[_few(x), _few(y)] for x, y in line.points]] for line in chart.lines
        ],
    }
    return _figure(chart.title, chart.unit, _legend(chart.lines), "".join(parts), data, width, height)


def _changes(marks: tuple[ChangeMark, ...], px: Callable[[float], float], width: int, bottom: int) -> list[str]:
    """A line with its letter for each, and with its text where there is room; each on a height of its own. Beside the
    line and below its top, where the number of an interruption may stand.
    """
    parts = []
    for n, mark in enumerate(marks):
        at, title = px(mark.x), f"<title>{escape(mark.letter)}: {escape(mark.text)}</title>"
        parts.append(f'<line class="change" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}">{title}</line>')
        words = f"{mark.letter}: {mark.text}" if width > WIDE else mark.letter
        words = words if len(words) <= MOST_WORDS else words[: MOST_WORDS - 1] + "…"
        left = at > width / 2
        place = f'x="{at + (-5 if left else 5):.1f}" y="{TOP + 14 + 20 * (n % 5):.1f}"'
        parts.append(f'<text class="change {"left" if left else "right"}" {place}>{escape(words)}{title}</text>')
    return parts


def heat_map(heat: Heat, width: int, of: str = "") -> str:
    """A figure with a row for each layer or expert; time runs to the right, in tokens. `of`: the run it is of."""
    row = next((height for most, height in ROWS if len(heat.labels) <= most), 2)
    right, bottom = width - RIGHT, 4 + row * len(heat.labels)
    gap = 1 if row > 4 else 0
    bounds = _bounds(heat)
    kind = "d" if heat.ratio else "q"
    last = heat.xs[-1] or 1.0

    def px(x: float) -> float:
        return LEFT + x / last * (right - LEFT)

    edges = [px(x) for x in (0.0, *heat.xs)]  # a column ends where its last row of metrics was written
    parts = []
    every = -(-14 // row)
    for number_of_row, (label, values) in enumerate(zip(heat.labels, heat.values, strict=True)):
        y = 4 + row * number_of_row
        if number_of_row % every == 0:
            parts.append(f'<text class="y" x="{LEFT - 7}" y="{y + row / 2 + 3.5:.1f}">{label}</text>')
        levels = [None if value is None else sum(value >= bound for bound in bounds) for value in values]
        start = 0
        for end in range(1, len(levels) + 1):
            if end == len(levels) or levels[end] != levels[start]:
                if levels[start] is not None:
                    size = f'width="{edges[end] - edges[start] + 0.3:.1f}" height="{row - gap}"'
                    parts.append(f'<rect class="{kind}{levels[start]}" x="{edges[start]:.1f}" y="{y}" {size}/>')
                start = end
    parts.append(_x_axis(0.0, last, px, bottom, width, axis=False))
    data = {
        "frame": [LEFT, 4, right, bottom],
        "heat": [[None if value is None else _few(value) for value in values] for values in heat.values],
        "rows": [f"{heat.rows} {label}" for label in heat.labels],
        "xs": [_few(x) for x in heat.xs],
    }
    unit = f"load over the fair share, by {heat.rows}" if heat.ratio else f"by {heat.rows}"
    unit += f", {of}" if of else ""
    return _figure(heat.title, unit, _key(bounds, kind, heat.only), "".join(parts), data, width, bottom + BOTTOM)


def _figure(title: str, unit: str, legend: str, drawing: str, data: dict, width: int, height: float) -> str:
    numbers = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    size = "card wide" if width > WIDE else "card"
    caption = f"<figcaption><b>{escape(title)}</b><span>{escape(unit)}</span></figcaption>"
    view = f'viewBox="0 0 {width} {height:g}" role="img" aria-label="{escape(title)}"'
    script = f'<script type="application/json">{numbers}</script>'
    return f'<figure class="{size}">{caption}{legend}<svg {view}>{drawing}</svg>{script}</figure>'


def _legend(lines: list[Line]) -> str:
    items = []
    for line in lines:
        if line.style != "faint":
            kind = "dots" if line.style == "dots" else "line"
            value = number(line.points[-1][1])
            items.append(f'<li><i class="{kind} c{line.slot % SLOTS}"></i>{escape(line.label)} <em>{value}</em></li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _key(bounds: list[float], kind: str, only: float | None) -> str:
    if not bounds:
        return f'<p class="key"><i class="{kind}0"></i><span>all {number(only or 0.0)}</span></p>'
    cells = "".join(f'<i class="{kind}{level}"></i>' for level in range(LEVELS))
    return f'<p class="key"><span>&lt; {bounds[0]:.3g}</span>{cells}<span>&ge; {bounds[-1]:.3g}</span></p>'


def _x_axis(low: float, high: float, px: Callable[[float], float], bottom: float, width: int, axis: bool = True) -> str:
    parts = [f'<line class="axis" x1="{LEFT}" x2="{width - RIGHT}" y1="{bottom}" y2="{bottom}"/>'] if axis else []
    for value in ticks(low, high, max(3, width // 110)):
        if value % 1:  # no part of a token
            continue
        label = short(value) if value else "0"
        at = px(value)
        anchor = ' style="text-anchor:end"' if at > width - RIGHT - 8 else ""
        parts.append(f'<text class="x" x="{at:.1f}" y="{bottom + 16:.1f}"{anchor}>{label}</text>')
    return "".join(parts)


def _bounds(heat: Heat) -> list[float]:
    """Between the colours; none where there is one value alone."""
    if heat.ratio:
        return list(RATIO_BOUNDS)
    if heat.only is not None:
        return []
    low, high = _span([value for values in heat.values for value in values if value is not None])
    return [low + (high - low) * n / LEVELS for n in range(1, LEVELS)]


def _span(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5)


def _limits(values: list[float], log: bool) -> tuple[float, float]:
    """With a little air; from 0 where the values are near it."""
    low, high = _span(values)
    if log:
        low, high = max(min(values), SMALLEST), max(*values, SMALLEST)
        return low / 1.15, high * 1.15
    if min(values) >= 0 and low < 0.25 * high:
        return 0.0, high * 1.05
    air = (high - low) * 0.06
    return low - air, high + air


def _few(value: float) -> float:
    """Five digits: enough to read, few enough to carry."""
    return float(f"{value:.5g}")
