"""The tasks that are scored while the run trains: known, with their data, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe.common.errors import InputError
from moe.config import Config
from moe.config.steps import Steps
from moe.plan.checks.result import Report, Result

if TYPE_CHECKING:
    from moe.train.inputs import Inputs


def check_tasks(config: Config, inputs: Inputs | None, report: Report) -> list[Result]:
    """Nothing where the config names none."""
    if config.eval_tasks is None:
        return []
    from moe.train.eval_tasks import build_requests, describe, load_tasks

    report("looking for the tasks of eval_tasks and their data ...")
    try:
        tasks = load_tasks(config)
        if inputs is None:
            return [Result("tasks", "pass", f"{', '.join(config.eval_tasks.names)}: their data can be read")]
        plan = describe(config, tasks, build_requests(config, inputs), Steps.of(config))
    except (InputError, OSError) as error:
        return [Result("tasks", "fail", str(error))]
    return [Result("tasks", "pass", plan)]
