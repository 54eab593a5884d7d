"""`eval_tasks` before the first step: the tasks are looked for, loaded, and their cost is reported.

Decisions:
- One rank of each machine loads first: what it fetches, the others find there.
- The cost is that of the questions as they will be asked, in tokens; a forward pass takes a third of a training step's
  time for as many.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe.common.units import say, short
from moe.config import Config
from moe.config.steps import Steps
from moe.train.distributed.ranks import LOCAL_RANK, RANK, agreed
from moe.train.inputs import Inputs

if TYPE_CHECKING:
    from moe.evaluate.requests import Requests
    from moe.evaluate.tasks import LoadedTask

FORWARD_SHARE = 1 / 3  # of a training step's time


@dataclass(frozen=True)
class PreparedTasks:
    """What is scored, how its questions become tokens, and what it costs, in words."""

    tasks: list[LoadedTask]
    requests: Requests
    plan: str


def find_eval_tasks(config: Config, inputs: Inputs, steps: Steps) -> PreparedTasks | None:
    """All ranks alike; None where the config names none.

    Raises:
        InputError: lm-eval is not there, a task is unknown or does not suit the model, data cannot be had.
    """
    if config.eval_tasks is None:
        return None
    say("looking for the tasks of eval_tasks and their data ...")
    loaded: list[LoadedTask] = []
    for turn in (LOCAL_RANK == 0, LOCAL_RANK != 0):
        agreed(lambda: loaded.extend(load_tasks(config)), here=turn)
    requests = build_requests(config, inputs)
    plan = agreed(lambda: describe(config, loaded, requests, steps), here=RANK == 0)
    return PreparedTasks(loaded, requests, plan)


def load_tasks(config: Config) -> list[LoadedTask]:
    """Raises InputError."""
    from moe.evaluate.tasks import find_tasks, load_task

    wanted = config.eval_tasks
    assert wanted is not None
    names = list(wanted.names)
    include = None if wanted.include_path is None else Path(wanted.include_path)
    manager = find_tasks(names, include, names="eval_tasks.names", include="eval_tasks.include_path")
    return [
        load_task(manager, name, fewshot=wanted.fewshot, limit=wanted.limit, names="eval_tasks.names") for name in names
    ]


def build_requests(config: Config, inputs: Inputs) -> Requests:
    from moe.evaluate.requests import Requests

    return Requests(
        inputs.tokenizer,
        max_seq_len=config.max_seq_len,
        trained_mask=config.model.document_mask,
    )


def describe(config: Config, tasks: list[LoadedTask], requests: Requests, steps: Steps) -> str:
    """What is asked how often, and what it costs.

    Raises:
        InputError: a task that this model cannot be asked.
    """
    from moe.evaluate.tasks import task_cost

    wanted = config.eval_tasks
    assert wanted is not None
    tokens = sum(task_cost(requests, task) for task in tasks)
    times = steps.every(wanted.interval).times
    share = times * tokens * FORWARD_SHARE / (steps.total * steps.tokens_per_step)
    return (
        f"{', '.join(wanted.names)}: {sum(task.questions for task in tasks):,} questions every {wanted.interval}, "
        f"{times:,} time{'s' * (times != 1)}; {short(tokens)} tokens each time, about {share:.1%} of the run's time"
    )
