"""Scores of lm-eval's tasks over a run: charts with error bars, and the last ones as a table.

Decisions:
- A task is drawn by its main metric; the table has all of them, and the bits per byte of the validation sets.
- One run: one chart, a line a task. Several runs: a chart a task, a line a run.
"""

from __future__ import annotations

from moe.common.task_metrics import ERROR, SHARES, by_task, key_of
from moe.runs.charts import Chart, Line, Marks, scale
from moe.runs.reading import Run
from moe.runs.scales import number


def task_charts(runs: dict[str, Run], marks: Marks) -> list[Chart]:
    """Where tasks were scored."""
    tasks = {task: metrics[0] for run in runs.values() for task, metrics in by_task(run.keys).items()}
    if len(runs) > 1:
        charts = {
            f"{task}, {metric}": [
                _line(label, run, task, metric, slot) for slot, (label, run) in enumerate(runs.items())
            ]
            for task, metric in tasks.items()
        }
    else:
        (run,) = runs.values()
        charts = {}
        for task, metric in tasks.items():
            of_kind = charts.setdefault("Tasks" if metric in SHARES else f"Tasks, {metric}", [])
            of_kind.append(_line(task, run, task, metric, len(of_kind)))
    drawn = {title: [line for line in lines if line.points] for title, lines in charts.items()}
    return [Chart(title, "± standard error", lines, marks=marks) for title, lines in drawn.items() if lines]


def _line(label: str, run: Run, task: str, metric: str, slot: int) -> Line:
    key = key_of(task, metric)
    errors = dict(run.series(key + ERROR))
    points = run.series(key)
    spread = tuple(errors.get(step, 0.0) for step, _ in points)
    return Line(label, [(step * scale(run), value) for step, value in points], slot, "dots", spread)


def score_rows(runs: dict[str, Run]) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of a table: of one run the first and the last score, of several the last of each."""
    alone = len(runs) == 1
    head = ["task", "metric", *(("first", "last", "at step") if alone else runs)]
    keys: dict[tuple[str, str], str] = {}
    for run in runs.values():
        keys |= {(task, m): key_of(task, m) for task, metrics in by_task(run.keys).items() for m in metrics}
    for run in runs.values() if keys else ():
        for name, key in run.validation().items():
            keys["validation" + f" {name}" * bool(name), "bits per byte"] = key.removesuffix("loss") + "bits_per_byte"
    rows = []
    for (task, metric), key in keys.items():
        cells = [_ends(run, key) for run in runs.values()]
        if any(any(of_run) for of_run in cells):
            rows.append([task, metric, *(cells[0] if alone else [of_run[1] for of_run in cells])])
    return head, rows


def _ends(run: Run, key: str) -> list[str]:
    """The first score, the last, and its step; empty where there is none."""
    points, errors = run.series(key), dict(run.series(key + ERROR))
    if not points:
        return ["", "", ""]
    shown = [
        number(value) + (f" ± {_two_digits(errors[step])}" if step in errors else "")
        for step, value in (points[0], points[-1])
    ]
    return [*shown, f"{points[-1][0]:,}"]


def _two_digits(error: float) -> str:
    return f"{error:.2g}" if error < 10 else f"{error:,.0f}"


def last_scores(run: Run) -> str:
    """Each task's main score in one line; empty where none was scored."""
    return ", ".join(f"{task} {_ends(run, key_of(task, metrics[0]))[1]}" for task, metrics in by_task(run.keys).items())
