"""What scores of tasks are called where metrics are logged, and which of a task's metrics stands for it."""

from __future__ import annotations

import re
from collections.abc import Iterable

PREFIX, ERROR = "tasks/", "_stderr"
SECONDS = "tasks/seconds"  # of a scoring; in the row of each that was made to its end
SHARES = ("acc_norm", "acc", "exact_match")  # of questions answered rightly
MAIN = (*SHARES, "f1", "bits_per_byte", "perplexity")  # the first of these that a task has
_KEY = re.compile(r"tasks/([^/]+)/(.+)")


def key_of(task: str, metric: str) -> str:
    """tasks/arc_easy/acc_norm"""
    return f"{PREFIX}{task}/{metric}"


def by_task(keys: Iterable[str]) -> dict[str, list[str]]:
    """The metrics of each task among the names of logged metrics, without standard errors; the main one first."""
    found: dict[str, list[str]] = {}
    for key in keys:
        if (match := _KEY.fullmatch(key)) and not match[2].endswith(ERROR):
            found.setdefault(match[1], []).append(match[2])
    return {task: sorted(metrics, key=lambda metric: metric != main_metric(metrics)) for task, metrics in found.items()}


def main_metric(metrics: Iterable[str]) -> str:
    """The one that stands for a task; `metrics` are not empty."""
    listed = list(metrics)
    return next((metric for metric in MAIN if metric in listed), listed[0])
