"""`moe eval --tasks` and `--suite`: lm-eval's tasks on a checkpoint, and on other models beside it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.common.errors import InputError
from moe.common.units import note, redraw, show

if TYPE_CHECKING:
    from moe.evaluate.scores import TaskScore
    from moe.evaluate.suites import SuiteTask
    from moe.evaluate.tasks import LoadedTask
    from moe.train.checkpointing.checkpoints import Checkpoint

TOKENS_PER_FORWARD = 8192
Results = dict[str, dict[str, Any]]  # lm-eval's, by the name that was asked for


def measure_tasks(args: argparse.Namespace) -> None:
    """Prints lm-eval's tables of the tasks; of a suite, and with --beside, what compares models."""
    from moe.evaluate.scores import KEPT, check_hugging_face_model, hugging_face_model, merged, result_tables
    from moe.use.inference import find_checkpoint

    suite = _suite(args.suite, args.fewshot)
    names = [name.strip() for name in (args.tasks or "").split(",") if name.strip()]
    if not suite and not names:
        raise InputError(f"--tasks ({args.tasks}) names no task, e.g. hellaswag,arc_easy")
    tasks = _load(args, suite, names)
    for name in args.beside or []:
        check_hugging_face_model(name, "--beside")
    checkpoint = find_checkpoint(args.checkpoint, args.step)
    lm: Any
    if args.through_export:
        from moe.use.export.beside import exported

        lm = hugging_face_model(str(exported(checkpoint, args.tokenizer)), args.batch_size, "--through-export")
    else:
        lm = _in_memory(checkpoint, args)
    found = _results(lm, tasks)
    show(f"\n{checkpoint.path.parent} at step {checkpoint.step:,}")
    results = merged(list(found.values()))
    for table in result_tables(results):
        show(table)
    kept = {"step": checkpoint.step, **{key: results[key] for key in KEPT if key in results}}
    _write(args.output, kept)  # the other models take as long again, and may fail
    others = {
        name: _results(hugging_face_model(name, args.batch_size, "--beside"), tasks) for name in args.beside or []
    }
    if suite or others:
        kept |= _compare(suite, {str(checkpoint.path.parent): found, **others})
        _write(args.output, kept)


def _write(path: Path | None, kept: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.is_file() or not os.path.lexists(path)  # no pipe, no /dev/null
        aside = path.with_name(f".{path.name}.tmp") if whole else path
        aside.write_text(json.dumps(kept, indent=1, default=str) + "\n", encoding="utf-8")
        if whole:
            os.replace(aside, path)


def _suite(name: str | None, fewshot: int | None) -> tuple[SuiteTask, ...]:
    from moe.evaluate.suites import SUITES

    if name is None:
        return ()
    if name not in SUITES:
        raise InputError(f"--suite ({name}): there is {', '.join(SUITES)}")
    if fewshot is not None:
        raise InputError(f"--fewshot ({fewshot}) has no effect on --suite, whose examples are fixed; leave it out")
    return SUITES[name]


def _load(args: argparse.Namespace, suite: tuple[SuiteTask, ...], names: list[str]) -> list[LoadedTask]:
    from moe.evaluate.tasks import find_tasks, load_task

    shots: dict[str, int | None] = {name: args.fewshot for name in names}
    for task in suite:
        if task.name in shots:
            raise InputError(f"--tasks ({task.name}) is in --suite {args.suite}; leave it out of one")
        shots[task.name] = task.fewshot
    flag = "--tasks" if names else "--suite"
    manager = find_tasks(list(shots), args.include_path, names=flag)
    return [load_task(manager, name, fewshot=n, limit=args.limit, names=flag) for name, n in shots.items()]


def _in_memory(checkpoint: Checkpoint, args: argparse.Namespace) -> Any:
    import torch

    from moe.evaluate.adapter import ModelLM
    from moe.evaluate.requests import Requests
    from moe.train.checkpointing.trained_tokenizer import checkpoint_tokenizer
    from moe.use.inference import load_model

    tokenizer = checkpoint_tokenizer(checkpoint, args.tokenizer, note)
    config = checkpoint.manifest["config"]
    seq_len = config["max_seq_len"]
    bf16 = torch.cuda.is_available() and config.get("precision") == "amp_bf16"
    masked = config["model"].get("document_mask", False)  # an import has none
    return ModelLM(
        load_model(checkpoint),
        Requests(tokenizer, max_seq_len=seq_len, trained_mask=masked),
        batch_tokens=args.batch_size * seq_len if args.batch_size else max(TOKENS_PER_FORWARD, seq_len),
        bf16=bf16,
    )


def _results(lm: Any, tasks: list[LoadedTask]) -> Results:
    from moe.evaluate.adapter import ModelLM
    from moe.evaluate.scores import score_task

    found = {}
    own = isinstance(lm, ModelLM)
    for n, task in enumerate(tasks, 1):
        if own:
            lm.ranks.between = _progress(f"{task.name} ({n} of {len(tasks)})")
        found[task.name] = score_task(lm, task)
        for line in lm.requests.notes(task.name) if own else []:
            note(line)
    if sys.stderr.isatty():
        redraw("")
    return found


def _progress(what: str) -> Callable[[], bool]:
    done = 0

    def between() -> bool:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            redraw(f"{what}: {done:,} batches")
        return False

    return between


def _compare(suite: tuple[SuiteTask, ...], found: dict[str, Results]) -> dict[str, Any]:
    """Prints one column a model, of the scores that stand for tasks; gives the same for a file."""
    from moe.evaluate.scores import main_scores, scores_of
    from moe.evaluate.suites import suite_score

    columns: dict[str, list[TaskScore]] = {}
    for model, results in found.items():
        scores = {name: scores_of(of_task, name) for name, of_task in results.items()}
        counted, mean = suite_score(suite, scores) if suite else ([], None)
        in_suite = {task.name for task in suite}
        extra = [score for name, of_task in scores.items() if name not in in_suite for score in main_scores(of_task)]
        columns[model] = [*counted, *extra, *([mean] if mean is not None else [])]
    rows = [["task", "metric", *(Path(model).name or model for model in columns)]]
    for of_row in zip(*columns.values(), strict=True):
        first = of_row[0]
        rows.append([first.task, first.metric, *(value_of(score) for score in of_row)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        show("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return {"compared": {model: [score._asdict() for score in scores] for model, scores in columns.items()}}


def value_of(score: TaskScore) -> str:
    """0.2840 ±0.0200"""
    return f"{score.value:.4f}" + ("" if score.error is None else f" ±{score.error:.4f}")
