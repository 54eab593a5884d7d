"""Tasks of lm-eval on a Hugging Face folder.

Decisions: what can be known to fail is tried by `find_tasks`, before the export of a checkpoint, which takes longer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe.common.errors import InputError, library_errors
from moe.common.extras import install_command

KEPT = ("results", "groups", "versions", "n-shot", "n-samples")  # of lm-eval's results, in a file


def find_tasks(tasks: list[str], include_path: Path | None) -> Any:
    """lm-eval's TaskManager that knows all `tasks` and can load their data.

    Raises:
        InputError: lm-eval is not installed, does not know a task, or cannot load its data.
    """
    try:
        import lm_eval.tasks
    except ImportError as error:
        raise InputError(f"--tasks needs lm-eval, which is not here ({error}); {install_command('eval')}") from None
    if include_path is not None and not include_path.is_dir():
        raise InputError(f"--include-path ({include_path}): there is no such folder")
    unknown, manager = tasks, None
    with library_errors("lm-eval", f"--include-path ({include_path})"):
        if include_path is not None:  # first alone: reading what lm-eval brings takes it long
            manager = lm_eval.tasks.TaskManager(include_path=str(include_path), include_defaults=False)
            unknown = [name for name in tasks if not manager.match_tasks([name])]
        if unknown:
            manager = lm_eval.tasks.TaskManager(include_path=None if include_path is None else str(include_path))
            unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise InputError(
            f"--tasks: lm-eval does not know {', '.join(unknown)}; `lm-eval ls tasks` lists what it has, "
            "--include-path DIR adds your own"
        )
    assert manager is not None, "no task is unknown"
    for name in tasks:  # before the export, which takes longer
        try:
            with library_errors("lm-eval", f"--tasks ({name})", but=(OSError,)):
                manager.load([name])
        except OSError as error:  # also the errors of datasets and of the hub's client
            raise InputError(
                f"--tasks: the data of {name} is not available: {str(error).splitlines()[0]}; where no hub can be "
                "reached, use a task on files of your own (--include-path, docs/serving.md)"
            ) from None
    return manager


def run_tasks(
    folder: Path, tasks: list[str], manager: Any, *, limit: int | None, batch_size: int | None
) -> dict[str, Any]:
    """lm-eval's results. `manager` is that of `find_tasks`.

    limit: examples of each task; all where it is None.
    """
    import lm_eval
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with library_errors("lm-eval", f"--tasks ({','.join(tasks)})"):
        results = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(folder), "dtype": "bfloat16" if device == "cuda" else "float32"},
            tasks=tasks,
            task_manager=manager,
            limit=limit,
            batch_size=batch_size or 1,
            device=device,
        )
    assert results is not None
    return results


def result_tables(results: dict[str, Any]) -> list[str]:
    """As lm-eval prints them: the tasks, and groups of tasks where there are any."""
    from lm_eval.utils import make_table

    return [make_table(results), *([make_table(results, "groups")] if results.get("groups") else [])]
