"""Scores of tasks, each with its standard error."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from moe.common.errors import InputError, library_errors
from moe.common.task_metrics import main_metric
from moe.evaluate.contained import contained
from moe.evaluate.ranks import ScoringFailed
from moe.evaluate.tasks import LoadedTask

KEPT = ("results", "groups", "versions", "n-shot", "n-samples")  # of lm-eval's results, in a file


class TaskScore(NamedTuple):
    """error: the standard error; None where there is none, as for a single item."""

    task: str
    metric: str
    value: float
    error: float | None
    items: int


def score_task(lm: Any, task: LoadedTask) -> dict[str, Any]:
    """lm-eval's results of one of its models, such as ModelLM; the same on every rank.

    Raises:
        InputError: it cannot be scored with this model, or lm-eval cannot do it.
        ScoringStopped: see Ranks.
    """
    from lm_eval.evaluator import evaluate

    from moe.evaluate.adapter import ModelLM

    turn = lm.ranks.turn_ended if isinstance(lm, ModelLM) else lambda: None
    with contained(turn), library_errors("lm-eval", task.about):
        task.prepare()
        try:
            found = evaluate(lm=lm, task_dict=task.loaded, limit=task.limit, log_samples=False)
        except ScoringFailed as error:
            raise InputError(f"{task.about} cannot be scored: {error}; leave it out") from None
    assert found is not None
    return dict(found)


def scores_of(results: dict[str, Any], name: str) -> list[TaskScore]:
    """What `results` say of `name`: of a task or of a group with a mean of its own that one, else of all its tasks."""
    own = _scores(results, name)
    if own:
        return own
    return [score for task in results["results"] if task != name for score in _scores(results, task)]


def _scores(results: dict[str, Any], task: str) -> list[TaskScore]:
    found = []
    values = results["results"].get(task, {})
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = values.get(f"{metric}_stderr,{kind}")
        found.append(
            TaskScore(
                task,
                metric if kind == "none" else f"{metric}_{kind}",
                float(value),
                float(error) if isinstance(error, (int, float)) and math.isfinite(error) else None,
                int(values.get("sample_len", 0)),
            )
        )
    return found


def main_scores(scores: Iterable[TaskScore]) -> list[TaskScore]:
    """Of each task the score that stands for it."""
    by_task: dict[str, dict[str, TaskScore]] = {}
    for score in scores:
        by_task.setdefault(score.task, {})[score.metric] = score
    return [by_metric[main_metric(by_metric)] for by_metric in by_task.values()]


def result_tables(results: dict[str, Any]) -> list[str]:
    """As lm-eval prints them: the tasks, and groups of tasks where there are any."""
    from lm_eval.utils import make_table

    return [make_table(results), *([make_table(results, "groups")] if results.get("groups") else [])]


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """lm-eval's results of several tasks as if they had been scored together."""
    found: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) else value
    return found


def check_hugging_face_model(folder: str, about: str) -> None:
    """Raises InputError where `hugging_face_model` would find no model or no tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    with library_errors("transformers", f"{about} ({folder})"):
        AutoConfig.from_pretrained(folder)
        AutoTokenizer.from_pretrained(folder)


def hugging_face_model(folder: str, batch_size: int | None, about: str = "") -> Any:
    """lm-eval's own model of a Hugging Face folder or hub name, for `score_task`. about: the flag that asked for it.

    Raises InputError.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with library_errors("lm-eval", f"{about} ({folder})"):
        from lm_eval.models.huggingface import HFLM

        dtype = "bfloat16" if device == "cuda" else "float32"
        return HFLM(pretrained=folder, dtype=dtype, device=device, batch_size=batch_size or 1)
