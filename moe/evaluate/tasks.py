"""lm-eval's tasks: which there are, their data, and what they cost.

Decisions:
- What can be known to fail is tried by `find_tasks`, before anything that takes long. Data that cannot be had are named
  with the folder that would bring them.
- A task is loaded once, however often it is scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.common.errors import InputError, library_errors
from moe.common.extras import install_command
from moe.evaluate.contained import contained
from moe.evaluate.ranks import ScoringFailed

if TYPE_CHECKING:
    from moe.evaluate.requests import Requests

FEWSHOT_SEED = 1234  # lm-eval's own


@dataclass(frozen=True)
class LoadedTask:
    """A task, a group or a tag of lm-eval with its data. fewshot: examples before each question, None for the task's
    own number. limit: at most so many questions of each task, None for all.
    """

    name: str
    about: str  # how the user asked for it, for messages
    loaded: Any  # of TaskManager.load
    fewshot: int | None
    limit: int | None

    def prepare(self) -> None:
        """Puts it at its beginning: the same examples stand before the same questions every time."""
        for task in self.loaded["tasks"].values():
            own = task.get_config("num_fewshot")
            if own is None or (self.fewshot is not None and own != 0):
                task.set_config(key="num_fewshot", value=self.fewshot or 0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)

    @property
    def questions(self) -> int:
        """How many are asked."""
        counts = [len(task.eval_docs) for task in self.loaded["tasks"].values()]
        return sum(counts if self.limit is None else [min(count, self.limit) for count in counts])


def find_tasks(
    tasks: list[str], include_path: Path | None, *, names: str = "--tasks", include: str = "--include-path"
) -> Any:
    """lm-eval's TaskManager that knows all `tasks`. names, include: what the user calls the two.

    Raises:
        InputError: lm-eval is not installed, or does not know a task.
    """
    try:
        import lm_eval.tasks
    except ImportError as error:
        raise InputError(f"{names} needs lm-eval, which is not here ({error}); {install_command('eval')}") from None
    if include_path is not None and not include_path.is_dir():
        raise InputError(f"{include} ({include_path}): there is no such folder")
    unknown, manager = tasks, None
    with library_errors("lm-eval", f"{include} ({include_path})"):
        if include_path is not None:  # first alone: reading what lm-eval brings takes it long
            manager = lm_eval.tasks.TaskManager(include_path=str(include_path), include_defaults=False)
            unknown = [name for name in tasks if not manager.match_tasks([name])]
        if unknown:
            manager = lm_eval.tasks.TaskManager(include_path=None if include_path is None else str(include_path))
            unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise InputError(
            f"{names}: lm-eval does not know {', '.join(unknown)}; `lm-eval ls tasks` lists what it has, "
            f"{include} adds a folder of your own"
        )
    assert manager is not None, "no task is unknown"
    return manager


def load_task(
    manager: Any, name: str, *, fewshot: int | None = None, limit: int | None = None, names: str = "--tasks"
) -> LoadedTask:
    """The task with its data.

    Raises:
        InputError: its data is not available, it cannot be built, or takes no examples.
    """
    try:
        with contained(), library_errors("lm-eval", f"{names} ({name})", but=(OSError,)):
            loaded = manager.load([name])
    except OSError as error:  # also the errors of datasets and of the hub's client
        cause = (str(error).splitlines() or [repr(error)])[0]
        raise InputError(f"{names}: the data of {name} is not available: {cause}; {_bring(manager, name)}") from None
    if fewshot:
        without = [each.task_name for each in loaded["tasks"].values() if each.get_config("num_fewshot") == 0]
        if without:
            raise InputError(
                f"{names} ({name}): {', '.join(without)} takes no examples (num_fewshot: 0 in its file), and {fewshot} "
                "are asked for; score it without"
            )
    return LoadedTask(name, f"{names} ({name})", loaded, fewshot, limit)


def _bring(manager: Any, name: str) -> str:
    """What to do where a task's data cannot be had."""
    own = "use a task on files of your own (docs/evaluation.md)"
    entry = manager.task_index.get(name)
    config = (entry.cfg if entry is not None else None) or {}
    path = config.get("dataset_path")
    if path is None or not isinstance(path, str) or path in ("json", "csv", "parquet", "text"):
        return f"where no hub can be reached, {own}"
    import datasets
    from datasets.naming import camelcase_to_snakecase

    given = repr(path) + (f", {config['dataset_name']!r}" if config.get("dataset_name") else "")
    *parents, last = path.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "___".join((*parents, camelcase_to_snakecase(last)))
    return (
        f'where no hub can be reached, run `python -c "import datasets; datasets.load_dataset({given})"` on a machine '
        f"that reaches it and bring the folder {folder} here, or {own}"
    )


def task_cost(asked: Requests, task: LoadedTask) -> int:
    """Tokens that one scoring sends through the model, at most where it writes itself.

    Raises:
        InputError: a question that this model cannot be asked, or that lm-eval cannot build.
    """
    with contained(), library_errors("lm-eval", task.about):
        task.prepare()
        requests: dict[str, list[Any]] = {}
        for each in task.loaded["tasks"].values():
            each.build_all_requests(limit=task.limit)
            for request in each.instances:
                requests.setdefault(request.request_type, []).append(request)
    try:
        return sum(asked.cost(kind, of_kind) for kind, of_kind in requests.items())
    except ScoringFailed as error:
        raise InputError(f"{task.about} cannot be scored: {error}; leave it out") from None
