"""The model card's section about lm-eval's tasks: what the run itself scored, with what was asked."""

from __future__ import annotations

from typing import Any

from moe.common.task_metrics import ERROR, by_task, key_of


def tasks_section(rows: list[dict[str, Any]], config: dict[str, Any]) -> list[str]:
    """Of rows of a metrics.jsonl: the last score of each task; nothing where none was scored."""
    lines = []
    for task, metrics in by_task(dict.fromkeys(key for row in rows for key in row)).items():
        for key, metric in ((key_of(task, metric), metric) for metric in metrics):
            scored = [row for row in rows if isinstance(row.get(key), float)]
            if scored:
                last = scored[-1]
                error = f"{last[key + ERROR]:.4f}" if isinstance(last.get(key + ERROR), float) else ""
                lines.append(f"| {task} | {metric} | {last['step']:,} | {last[key]:.4f} | {error} |")
    if not lines:
        return []
    asked, which = config.get("eval_tasks") or {}, "Tasks of lm-eval"
    if asked.get("limit"):
        which += f", at most {asked['limit']:,} questions each"
    if asked.get("fewshot") is not None:
        which += f", {asked['fewshot']} examples before each question"
    head = "| task | metric | step | score | standard error |\n|---|---|---|---|---|"
    return [f"## Tasks\n\n{which}.\n\n" + "\n".join([head, *lines])]
