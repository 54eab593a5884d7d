"""lm-eval's tasks on a checkpoint, through the model as transformers reads it.

RUN/hf/step-00005000-1a2b3c4d-5e6f7a8b/     the export that is asked, made once; its name ends with the checkpoint's
                                            xxh64 and the tokenizer's fingerprint
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe.data.text.tokenizer import tokenizer_fingerprint
from moe.errors import InputError
from moe.inference import find_checkpoint
from moe.train.checkpoints import STATE, Checkpoint
from moe.train.trained_tokenizer import checkpoint_tokenizer
from moe.units import say

EXPORTS = "hf"
INSTALL = "pip install -e '.[eval]'"


def run_tasks(
    path: str,
    *,
    step: int | None,
    tokenizer: str | None,
    tasks: list[str],
    include_path: Path | None,
    limit: int | None,
    batch_size: int | None,
    output: Path | None,
) -> dict[str, Any]:
    """Exports the checkpoint where that was not done, runs the tasks and prints lm-eval's table; returns its results.

    Raises:
        InputError: lm-eval is not installed, does not know a task, or cannot load its data.
        RunFailed: the export is not what the checkpoint is.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table
    except ImportError as error:
        raise InputError(f"--tasks needs lm-eval, which is not here ({error}); {INSTALL}") from None
    import torch

    if include_path is not None and not include_path.is_dir():
        raise InputError(f"--include-path ({include_path}): there is no such folder")
    unknown, manager = tasks, None
    if include_path is not None:  # first alone: reading what lm-eval brings takes it long
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
        unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        manager = TaskManager(include_path=None if include_path is None else str(include_path))
        unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise InputError(
            f"--tasks: lm-eval does not know {', '.join(unknown)}; `lm-eval ls tasks` lists what it has, "
            "--include-path DIR adds your own"
        )
    checkpoint = find_checkpoint(path, step)
    assert manager is not None, "no task is unknown"
    for name in tasks:  # before the export, which takes longer
        try:
            manager.load([name])
        except OSError as error:  # also the errors of datasets and of the hub's client
            raise InputError(
                f"--tasks: the data of {name} cannot be had: {str(error).splitlines()[0]}; where no hub can be "
                "reached, use a task on files of your own (--include-path, docs/serving.md)"
            ) from None
    folder = exported(checkpoint, tokenizer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
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
    say(f"\n{checkpoint.path.parent} at step {checkpoint.step:,}")
    say(make_table(results))
    if results.get("groups"):
        say(make_table(results, "groups"))
    if output is not None:
        kept = {key: results[key] for key in ("results", "groups", "versions", "n-shot", "n-samples") if key in results}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"step": checkpoint.step, **kept}, indent=1, default=str) + "\n", encoding="utf-8")
    return results


def exported(checkpoint: Checkpoint, tokenizer_name: str | None = None) -> Path:
    """The checkpoint as a Hugging Face folder beside it; made where it is not there yet.

    tokenizer_name: another tokenizer than the checkpoint's own.
    """
    from moe.export.to_hf import export

    told: list[str] = []
    ids = tokenizer_fingerprint(checkpoint_tokenizer(checkpoint, tokenizer_name, told.append))
    digest = checkpoint.manifest["files"][STATE]["xxh64"]
    folder = checkpoint.path.parent / EXPORTS / f"{checkpoint.path.name}-{digest[:8]}-{ids[:8]}"
    if not folder.is_dir():
        export(str(checkpoint.path), out=folder, tokenizer_name=tokenizer_name, say=say)
        return folder
    for line in told:
        say(line)
    return folder
