"""The checkpoint that an import makes, written and read back one parameter at a time.

    OUT/step-00000000/shard-00001-...safetensors   the parameters, as one rank of those that share a model writes them
    OUT/step-00000000/state.pt                     the rest, which is small

Any number of ranks reads it, with `parallelism.fsdp2` or without. A state.pt that held all would be written from, and
read into, a dictionary of all tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from moe.common import ownership
from moe.train.checkpointing.checkpoints import KIND, commit, load_state, make_aside, read_checkpoint, write_state
from moe.train.checkpointing.parts import MODEL, Parts, Rows, describe, part_name, write_rows
from moe.use.inference import PREFIX

KEY = f"{MODEL}.{PREFIX}"


def write_step_zero(
    save_folder: Path,
    weights: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    more_state: dict[str, Tensor],
    manifest: dict[str, Any],
    more: Mapping[str, bytes],
) -> Path:
    """Writes the checkpoint and returns its folder.

    weights: parameters and buffers by name, each asked for once. parameters: the names and shapes of the former.
    more_state: what the state of a run holds beside the transformer's. more: files to stand beside the state.

    Raises OSError, and what `weights` raises.
    """
    aside = make_aside(save_folder, "writing", 0)
    ownership.begin(aside, KIND)
    part = {KEY + name: Rows(shape, 0) for name, shape in parameters.items()}
    file = part_name(0)
    files = {file: write_rows(aside / file, part, lambda name: weights[name.removeprefix(KEY)])}
    buffers = {PREFIX + name: weights[name] for name in weights if name not in parameters}
    files |= write_state(aside, {"state": {"model": buffers | more_state}}, more)
    tensors = describe(part, {name: [*rows.values.shape] for name, rows in part.items()}, file)
    return commit(aside, save_folder, 0, {**manifest, "tensors": tensors}, files)


class _Written(Mapping[str, Tensor]):
    def __init__(self, buffers: dict[str, Tensor], parts: Parts):
        self._buffers, self._parts = buffers, parts
        self._names = [name.removeprefix(KEY) for name in parts.tensors] + [*buffers]

    def __getitem__(self, name: str) -> Tensor:
        return self._buffers[name] if name in self._buffers else self._parts.rows(KEY + name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextmanager
def read_back(folder: Path) -> Iterator[Mapping[str, Tensor]]:
    """Parameters and buffers of a checkpoint that `write_step_zero` has written, each a copy in memory."""
    checkpoint = read_checkpoint(folder, hashes=False)
    state: dict[str, Tensor] = load_state(checkpoint.state_file)["state"]["model"]
    buffers = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    with Parts(checkpoint.path, checkpoint.manifest) as parts:
        yield _Written(buffers, parts)
