"""A checkpoint's tensors, whichever format it has: all in state.pt, or divided among parts (parts.py)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.train.checkpointing.checkpoints import Checkpoint, load_state, open_state
from moe.train.checkpointing.parts import MODEL, OPTIMIZER, Parts


def full_content(checkpoint: Checkpoint) -> dict[str, Any]:
    """What Composer's State.state_dict() gave, all tensors in memory, verified as they are read.

    Raises:
        CheckpointError: a file is not what the manifest says.
    """
    with open_state(checkpoint) as file:
        content = load_state(file)["state"]
    if checkpoint.manifest.get("tensors"):
        with Parts(checkpoint.path, checkpoint.manifest) as parts:
            _fill(content, parts)
    return content


def _fill(content: dict[str, Any], parts: Parts) -> None:
    for name in parts.tensors:
        kind, _, rest = name.partition(".")
        if kind == MODEL:
            content["model"][rest] = parts.rows(name)
        elif kind == OPTIMIZER and content.get("optimizers"):
            key, _, parameter = rest.partition(".")
            (optimizer,) = content["optimizers"].values()
            optimizer["state"].setdefault(parameter, {})[key] = parts.rows(name)


def model_tensors(checkpoint: Checkpoint, scratch: Path | None = None) -> dict[str, Tensor]:
    """Weights and buffers by name, left on disk until they are used, as a state.pt has them.

    scratch: a folder for a file of their size, for tensors that are divided: it has no name and is gone with the
    tensors. Without it these are in memory.
    """
    found: dict[str, Tensor] = load_state(checkpoint.state_file, mmap=True)["state"]["model"]
    if checkpoint.manifest.get("tensors"):
        with Parts(checkpoint.path, checkpoint.manifest) as parts:
            for name in [name for name in parts.tensors if name.startswith(f"{MODEL}.")]:
                rows = parts.rows(name)
                found[name.removeprefix(f"{MODEL}.")] = rows if scratch is None else on_disk(rows, scratch)
    return found


def on_disk(tensor: Tensor, scratch: Path) -> Tensor:
    """The same, mapped from a file in the folder `scratch` that has no name. Raises OSError."""
    with tempfile.NamedTemporaryFile(dir=scratch) as file:
        file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        file.flush()
        storage = torch.UntypedStorage.from_file(file.name, shared=False, nbytes=tensor.nbytes)
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape)  # type: ignore[call-overload]
