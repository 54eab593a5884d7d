"""Heat maps of a run, as plain numbers: a metric of every layer, or of one layer's experts, over time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import zip_longest

from moe.runs.charts import scale, stretches
from moe.runs.reading import Run

MOST_COLUMNS, LEAST_COLUMNS, MOST_CELLS = 160, 24, 40_000  # of a heat map, and of all of one metric
SAME = 1e-6  # of a value: no difference that could be seen
RATIO = re.compile(r"/load(_|$)")


@dataclass(frozen=True)
class Heat:
    """A metric of every layer, or of one layer's experts, over time: `values[row][column]`, None where not logged.

    Attributes:
        rows: what the rows are, "layer" or "expert".
        ratio: the values are shares over the fair share, 1 is right.
    """

    title: str
    rows: str
    labels: list[int]
    xs: list[float]
    values: list[list[float | None]]
    ratio: bool

    @property
    def only(self) -> float | None:
        """The value that all have, where all have the same."""
        found = [value for row in self.values for value in row if value is not None]
        low, high = min(found), max(found)
        return high if high - low <= SAME * max(abs(low), abs(high)) else None


def layer_heats(run: Run) -> list[Heat]:
    """One for each metric with a value a layer."""
    found = []
    for name, layers in run.layered().items():
        series = {layer: dict(run.series(key)) for layer, key in layers.items()}
        steps = sorted({step for values in series.values() for step in values})
        if steps:
            columns = stretches(steps, MOST_COLUMNS)
            values = [
                [_mean([of[step] for step in group if step in of]) for group in columns] for of in series.values()
            ]
            found.append(Heat(name, "layer", list(series), _ends(run, columns), values, bool(RATIO.search(name))))
    return found


def expert_heats(run: Run) -> list[Heat]:
    """One a layer for each metric with a value an expert."""
    found = []
    for name, layers in run.layered().items():
        for layer, key in layers.items():
            series = run.lists(key)
            experts = max((len(values) for _, values in series), default=0)
            if experts:
                most = min(MOST_COLUMNS, max(LEAST_COLUMNS, MOST_CELLS // (experts * len(layers))))
                columns = stretches(series, most)
                means = [_means([of for _, of in group]) for group in columns]
                values = [[of[n] if n < len(of) else None for of in means] for n in range(experts)]
                xs = _ends(run, [[step for step, _ in group] for group in columns])
                title = f"Layer {layer}" if name == "experts/load" else f"{name}, layer {layer}"
                found.append(Heat(title, "expert", list(range(experts)), xs, values, bool(RATIO.search(name))))
    return found


def _ends(run: Run, columns: list[list[int]]) -> list[float]:
    return [group[-1] * scale(run) for group in columns]


def _means(lists: list[list[float]]) -> list[float | None]:
    """Of each expert, over the lists that have one for it."""
    return [_mean([value for value in of if value is not None]) for of in zip_longest(*lists)]


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
