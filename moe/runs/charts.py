"""What there is to draw of a run, as plain numbers: the page and the PNG draw the same.

Decisions:
- A chart is drawn where its metrics were logged, and no empty one where not. What no chart names gets a small one of
  its own, but for what another metric says (SAID).
- Several runs: one colour a run, and of a chart with several metrics the first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from moe.runs.changes import Change
from moe.runs.interruptions import Interruption
from moe.runs.reading import Run

MOST_POINTS = 500  # of a line; beyond, each stretch shows its smallest and its largest value
SMOOTH_FROM = 40  # points; below, a line is drawn as it is


@dataclass(frozen=True)
class Line:
    """`slot` numbers its colour; `style` is line, faint (behind the smoothed one) or dots. `spread`: of each point, how
    far its error bar reaches to either side; none where it is empty.
    """

    label: str
    points: list[tuple[float, float]]
    slot: int
    style: str = "line"
    spread: tuple[float, ...] = ()

    @property
    def bars(self) -> list[tuple[float, float, float]]:
        """(x, low, high) of each error bar."""
        return [(x, y - by, y + by) for (x, y), by in zip(self.points, self.spread, strict=False) if by]


@dataclass(frozen=True)
class Mark:
    """An interruption: at `x`, number `number`; from `back` on the run was trained again."""

    x: float
    back: float
    number: int


@dataclass(frozen=True)
class ChangeMark:
    """Settings that are others from `x` on; `letter` names it."""

    x: float
    letter: str
    text: str


@dataclass(frozen=True)
class Marks:
    """What is marked in every chart."""

    interruptions: tuple[Mark, ...] = ()
    changes: tuple[ChangeMark, ...] = ()


@dataclass(frozen=True)
class Chart:
    title: str
    unit: str
    lines: list[Line]
    log: bool = False
    marks: Marks = Marks()

    @property
    def limits_x(self) -> tuple[float, float]:
        """Of the lines and of the marks, of which the last may be beyond the last row. From 0, so that charts stand
        under each other, but where the run began far from it.
        """
        xs = [x for line in self.lines for x, _ in line.points]
        xs += [x for mark in self.marks.interruptions for x in (mark.x, mark.back)]
        xs += [mark.x for mark in self.marks.changes]
        low, high = min(xs), max(xs)
        if not high > 0:
            return 0.0, 1.0  # only step 0 is logged
        low = low if low > high / 4 else 0.0
        return (low, high) if high > low else (low * 0.5, high * 1.5)


@dataclass(frozen=True)
class Kind:
    """One chart: its metrics as patterns, the first group of which is the label."""

    title: str
    unit: str
    metrics: tuple[tuple[str, str], ...]  # (pattern, label; "" for the pattern's group)
    log: bool = False


KINDS = (
    Kind("Learning rate", "", (("optim/lr/(.+)", ""),)),
    Kind(
        "Gradient norm",
        "L2, log scale",
        (("optim/grad_norm", "before clipping"), ("optim/grad_norm_clipped", "after")),
        log=True,
    ),
    Kind("Weights", "root mean square, log scale", (("weight_rms/(.+)", ""),), log=True),
    Kind("Updates", "root mean square of a step, log scale", (("update_rms/(.+)", ""),), log=True),
    Kind("Throughput", "tokens per second", (("throughput/tokens_per_sec", "tokens/s"),)),
    Kind("Model FLOPs utilisation", "share of the device's peak", (("throughput/device/mfu", "MFU"),)),
    Kind("Waiting for data", "share of a step's time", (("throughput/data_wait", "data wait"),)),
    Kind("Memory", "GB", (("memory/(.+)_gb", ""),)),
    Kind(
        "Load of the experts",
        "over the fair share; 1 is balanced",
        (("experts/load_max", "busiest"), ("experts/load_min", "idlest")),
    ),
    Kind("Balance loss", "1 is balanced", (("train/balance_loss", "balance"),)),
    Kind("Router entropy", "nats", (("router/entropy", "entropy"),)),
)
# Said by another metric, or of no use over time.
SAID = re.compile(
    r"tokens|.*/perplexity|samples/.*|tasks/.*|time/.*"
    r"|throughput/((device/)?(batches|samples|flops)_per_sec|device/tokens_per_sec|step_seconds)"
)


def scale(run: Run) -> float:
    """Tokens per step: what turns steps into the x axis; 1 where the config does not tell."""
    return float(run.tokens_per_step or 1)


def marks_of(run: Run, found: list[Interruption], changed: Sequence[Change] = ()) -> Marks:
    """The changes of one step are one mark."""
    factor = scale(run)
    steps: dict[int, list[str]] = {}
    for change in changed:
        texts = steps.setdefault(change.step, [change.rate] if change.rate else [])
        texts.append(change.text)
    return Marks(
        tuple(Mark(one.step * factor, one.resumed_step * factor, n) for n, one in enumerate(found, 1)),
        tuple(
            ChangeMark(step * factor, letter, "; ".join(texts))
            for (step, texts), letter in zip(steps.items(), letters(len(steps)), strict=True)
        ),
    )


def letters(count: int) -> list[str]:
    """A to Z, then AA, AB and so on."""
    return [("" if n < 26 else chr(64 + n // 26)) + chr(65 + n % 26) for n in range(count)]


def loss_chart(runs: dict[str, Run], marks: Marks) -> Chart | None:
    """Training and validation loss of every run."""
    lines: list[Line] = []
    several = len(runs) > 1
    for slot, (name, run) in enumerate(runs.items()):
        factor = scale(run)
        points = [(step * factor, value) for step, value in run.series("train/loss")]
        label = name if several else "training"
        if len(points) >= SMOOTH_FROM:
            lines.append(Line(f"{label}, as logged", thin(points), slot, "faint"))
            points = smooth(points)
        if points:
            lines.append(Line(label, thin(points), slot))
        for number, (split, key) in enumerate(run.validation().items(), 1):
            dots = [(step * factor, value) for step, value in run.series(key)]
            label = ", ".join(part for part in (name if several else "", "validation", split) if part)
            if dots:
                lines.append(Line(label, dots, slot if several else number, "dots"))
    return Chart("Loss", "nats per token", lines, marks=marks) if lines else None


def charts(runs: dict[str, Run], marks: Marks) -> list[Chart]:
    """Those of KINDS whose metrics were logged."""
    found = []
    for kind in KINDS:
        lines = _lines(kind, runs)
        if lines:
            found.append(Chart(kind.title, kind.unit, lines, kind.log, marks))
    return found


def other_charts(runs: dict[str, Run], marks: Marks) -> list[Chart]:
    """One for each metric that is in no other."""
    known = [re.compile(pattern) for kind in KINDS for pattern, _ in kind.metrics] + [SAID]
    keys = {key: None for run in runs.values() for key in run.keys}
    layered = {key for run in runs.values() for layers in run.layered().values() for key in layers.values()}
    shown = {"train/loss", *(key for run in runs.values() for key in run.validation().values()), *layered}
    found = []
    for key in sorted(keys.keys() - shown):
        if any(pattern.fullmatch(key) for pattern in known):
            continue
        lines = [
            Line(name if len(runs) > 1 else key, _points(run, key), slot)
            for slot, (name, run) in enumerate(runs.items())
        ]
        lines = [line for line in lines if line.points]
        if lines:
            found.append(Chart(key, "", lines, marks=marks))
    return found


def _lines(kind: Kind, runs: dict[str, Run]) -> list[Line]:
    several = len(runs) > 1
    lines: list[Line] = []
    for slot, (name, run) in enumerate(runs.items()):
        of_run: list[Line] = []
        for pattern, label in kind.metrics:
            for key in run.keys:
                if not (match := re.fullmatch(pattern, key)):
                    continue
                points = _points(run, key)
                label_here = label or match[1]
                same = next((n for n, line in enumerate(of_run) if line.points == points), None)
                if same is not None and points:
                    of_run[same] = Line(f"{of_run[same].label}, {label_here}", points, of_run[same].slot)
                elif points:
                    of_run.append(Line(label_here, points, len(of_run)))
        lines += [Line(name, line.points, slot) for line in of_run[:1]] if several else of_run
    return lines


def _points(run: Run, key: str) -> list[tuple[float, float]]:
    factor = scale(run)
    return [(step * factor, value) for step, value in thin(run.series(key))]


def thin(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most about `most` points, with the outliers: of each stretch its smallest and its largest."""
    if len(points) <= most:
        return list(points)
    kept = [points[0]]
    for group in stretches(list(points[1:-1]), most // 2):
        kept += sorted({min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])})
    return [*kept, points[-1]]


def smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A centred mean over about 1/30 of the run: it does not lag behind."""
    reach = max(1, len(points) // 60)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    found = []
    for n, (x, _) in enumerate(points):
        side = min(reach, n, len(points) - 1 - n)
        found.append((x, (sums[n + side + 1] - sums[n - side]) / (2 * side + 1)))
    return found


def stretches(items: list, most: int) -> list[list]:
    """`items` in at most `most` consecutive parts of about the same length."""
    count = min(most, len(items))
    bounds = [len(items) * n // count for n in range(count + 1)] if count else []
    return [items[low:high] for low, high in pairwise(bounds)]
