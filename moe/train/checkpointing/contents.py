"""A checkpoint's tensors, whichever format it has: all in state.pt, or divided among parts (parts.py)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.train.checkpointing.checkpoints import Checkpoint, load_state, open_state
from moe.train.checkpointing.files import PIECE
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
        buffer = torch.empty(PIECE, dtype=torch.uint8)
        with Parts(checkpoint.path, checkpoint.manifest) as parts:
            for name in [name for name in parts.tensors if name.startswith(f"{MODEL}.")]:
                tensor = parts.rows(name) if scratch is None else on_disk(_pieces(parts, name, buffer), scratch)
                found[name.removeprefix(f"{MODEL}.")] = tensor
    return found


def _pieces(parts: Parts, name: str, buffer: Tensor) -> Iterator[Tensor]:
    """A tensor's rows, some at once. buffer: bytes for them, one for all tensors: glibc keeps what is freed."""
    rows, *others = parts.tensors[name]["shape"]
    dtype = parts.dtype(name)
    row = dtype.itemsize * math.prod(others)
    at_once = min(rows, max(1, PIECE // row))
    if row > len(buffer):
        buffer = torch.empty(row, dtype=torch.uint8)
    for first in range(0, rows, at_once):
        count = min(at_once, rows - first)
        piece = buffer[: count * row].view(dtype).view(count, *others)
        parts.read(name, first, piece)
        yield piece


def on_disk(pieces: Iterable[Tensor], scratch: Path) -> Tensor:
    """A tensor of these, joined along the first dimension, mapped from a file in the folder `scratch` that has no name.

    Raises OSError.
    """
    rows = 0
    with tempfile.NamedTemporaryFile(dir=scratch) as file:
        for piece in pieces:
            file.write(piece.contiguous().flatten().view(torch.uint8).numpy().data)
            rows += len(piece)
        file.flush()
        storage = torch.UntypedStorage.from_file(file.name, shared=False, nbytes=file.tell())
    return torch.empty(0, dtype=piece.dtype).set_(storage, 0, (rows, *piece.shape[1:]))  # type: ignore[call-overload]
