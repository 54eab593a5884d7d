"""A checkpoint as a model to ask: loads the weights without Composer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import torch
from torch import Tensor

from moe.common.paths import local_path
from moe.common.typed_json import error_in
from moe.config.former import model_settings
from moe.config.schema import ModelConfig
from moe.model import Transformer
from moe.train.checkpointing.checkpoints import (
    MANIFEST,
    STATE,
    Checkpoint,
    CheckpointError,
    find_named,
    folder_name,
    step_folders,
)
from moe.train.checkpointing.contents import model_tensors

PREFIX = "transformer."
STEP_FOLDER = re.compile(r"step-\d{8,}")
MOST_STEPS = 20  # that a message lists
LOSS_SETTINGS = ("balance_loss", "balance_rate", "router_z_loss")


class Source(TypedDict):
    """What a manifest's configuration must tell of a model that is asked."""

    tokenizer: str
    max_seq_len: int
    model: dict[str, Any]


def find_checkpoint(path: str, step: int | None = None) -> Checkpoint:
    """The checkpoint at `path` (a run folder for its newest, or a step folder), or that of `step` in a run folder.

    Raises:
        CheckpointError: no checkpoint there that verifies, or a step that none can have.
    """
    path = str(local_path(path, "the checkpoint"))
    if step is not None:
        if step < 0:
            raise CheckpointError(f"--step ({step}): must be at least 0")
        if Path(path).name == STATE or STEP_FOLDER.fullmatch(Path(path).name) or (Path(path) / MANIFEST).exists():
            raise CheckpointError(f"{path}: is one step's folder and takes no --step ({step}); give its run folder")
        wanted = Path(path) / folder_name(step)
        if not wanted.is_dir():
            raise CheckpointError(f"{wanted}: there is no such checkpoint folder{_steps_there(Path(path))}")
        path = str(wanted)
    found = find_named(path)
    config = found.manifest["config"]
    error = error_in(config, Source, "config")
    for name, shape in get_type_hints(ModelConfig).items():
        if error is None and name in config["model"]:
            error = error_in(config["model"][name], shape, f"config.model.{name}")
    if error is not None:
        raise CheckpointError(f"{found.path / MANIFEST}: {error}")
    return found


def _steps_there(run: Path) -> str:
    if not run.is_dir():
        return f"; {run} is not there at all"
    steps = [int(folder.name.removeprefix("step-")) for folder in step_folders(run)]
    if not steps:
        return f"; {run} holds no checkpoints"
    earlier = f", and {len(steps) - MOST_STEPS} earlier ones" if len(steps) > MOST_STEPS else ""
    return f"; {run} holds step {', '.join(map(str, steps[-MOST_STEPS:]))}{earlier}"


def load_weights(checkpoint: Checkpoint, scratch: Path | None = None) -> dict[str, Tensor]:
    """The transformer's parameters by name, left on disk until they are used; `scratch` as `model_tensors` has it."""
    state = model_tensors(checkpoint, scratch)
    return {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}


def build_skeleton(settings: dict[str, Any], *, vocab_size: int, eos_id: int) -> Transformer:
    """A Transformer without memory for its weights, from a manifest's `model` section.

    Its document mask is off: a model in use sees all that stands before, as any engine shows it.
    """
    known = {
        k: v
        for k, v in model_settings(settings).items()
        if k in ModelConfig.__dataclass_fields__ and k not in LOSS_SETTINGS
    }
    with torch.device("meta"):
        return Transformer(vocab_size=vocab_size, eos_id=eos_id, **{**known, "document_mask": False})


def load_model(checkpoint: Checkpoint) -> Transformer:
    """The model in eval mode, on the GPU where there is one."""
    manifest = checkpoint.manifest
    settings, sizes = manifest["config"]["model"], {key: manifest[key] for key in ("vocab_size", "eos_id")}
    try:
        model = build_skeleton(settings, **sizes)
        model.load_state_dict(load_weights(checkpoint), assign=True)
    except (TypeError, RuntimeError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"{checkpoint.path / MANIFEST}: describes another model than its weights ({reason})"
        ) from None
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
