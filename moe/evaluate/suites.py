"""Fixed lists of tasks, and their centred mean: 0 for a model that guesses, 1 for one that is always right.

Decisions:
- `core` takes nine of the tasks of DCLM's CORE (arXiv 2406.11794) with DCLM's number of examples and its random
  baselines (its eval/mmlu_and_lowvar.yaml and eval/eval_meta_data_v1.csv). The prompts are lm-eval's, so its mean is
  no CORE and is not comparable with published ones: score another model with it (`--beside`).
- Centred as DCLM's code does it: (score - baseline) / (1 - baseline), then the plain mean over tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from moe.evaluate.scores import TaskScore


class SuiteTask(NamedTuple):
    """baseline: the metric of a model that guesses."""

    name: str
    metric: str
    fewshot: int
    baseline: float


SUITES: dict[str, tuple[SuiteTask, ...]] = {
    "core": (
        SuiteTask("hellaswag", "acc_norm", 0, 0.25),
        SuiteTask("arc_easy", "acc_norm", 10, 0.25),
        SuiteTask("arc_challenge", "acc_norm", 10, 0.25),
        SuiteTask("copa", "acc", 0, 0.5),
        SuiteTask("piqa", "acc_norm", 10, 0.5),
        SuiteTask("openbookqa", "acc_norm", 0, 0.25),
        SuiteTask("lambada_openai", "acc", 0, 0.0),
        SuiteTask("winogrande", "acc", 0, 0.5),
        SuiteTask("boolq", "acc", 10, 0.62),  # the share of the commoner answer
    )
}


def suite_score(suite: Sequence[SuiteTask], scores: dict[str, list[TaskScore]]) -> tuple[list[TaskScore], TaskScore]:
    """The score of each task that counts, and the centred mean with its standard error.

    scores: of each of the suite's tasks, by name.
    """
    counted = [_of(task, scores[task.name]) for task in suite]
    centred = [(one.value - task.baseline) / (1 - task.baseline) for task, one in zip(suite, counted, strict=True)]
    errors = [
        one.error / (1 - task.baseline) for task, one in zip(suite, counted, strict=True) if one.error is not None
    ]
    error = math.sqrt(sum(each**2 for each in errors)) / len(suite) if len(errors) == len(suite) else None
    mean = TaskScore("", "centred mean", sum(centred) / len(suite), error, sum(one.items for one in counted))
    return counted, mean


def _of(task: SuiteTask, scores: list[TaskScore]) -> TaskScore:
    return next(score for score in scores if score.metric == task.metric)
