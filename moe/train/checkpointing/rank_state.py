"""Model and optimizer of ranks that share them (FSDP2, HSDP), to and from a checkpoint, each rank its own rows.

Decisions:
- What is divided among the ranks (DTensors: parameters, their momenta) is a part of this rank's. What is not (buffers,
  counts of steps, hyperparameters) is small and the same on all: it is in state.pt, where DDP has all of it.
- Of replicas (HSDP) the first one's ranks have parts.
- Loading takes rows of either format, and copies them into what the ranks have: no rank ever holds a complete state.
  Composer's way through torch's `set_optimizer_state_dict` gathers it.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from moe.model.ranks import own_rows, split_dim
from moe.train.checkpointing.checkpoints import CheckpointError
from moe.train.checkpointing.host_memory import HostMemory
from moe.train.checkpointing.parts import MODEL, OPTIMIZER, Part, Parts, Rows


class OwnState(NamedTuple):
    """What one rank has of model and optimizer.

    Attributes:
        part: copies of this rank's rows; None where another replica's rank has the same.
        number: of this rank in its replica. parts: how many ranks a replica has.
        shapes: of the complete tensors.
        model, optimizer: what is not divided, as torch's state dicts have it.
    """

    part: Part | None
    number: int
    parts: int
    shapes: dict[str, list[int]]
    model: dict[str, Any]
    optimizer: dict[str, Any]

    def nbytes(self) -> int:
        return sum(rows.values.nbytes for rows in (self.part or {}).values())


def own_state(model: nn.Module, optimizer: torch.optim.Optimizer, memory: HostMemory) -> OwnState:
    """The only copies are those of this rank's rows, in `memory`. Used gradients are let go before."""
    optimizer.zero_grad(set_to_none=True)
    options = StateDictOptions(full_state_dict=False, cpu_offload=False)
    weights = get_model_state_dict(model, options=options)
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=options)
    divided = {f"{MODEL}.{name}": value for name, value in weights.items() if isinstance(value, DTensor)}
    for name, entries in state["state"].items():
        divided |= {f"{OPTIMIZER}.{key}.{name}": entry for key, entry in entries.items() if isinstance(entry, DTensor)}
    mesh: Any = next(iter(divided.values())).device_mesh
    *replica, number = mesh.get_coordinate()
    part: Part | None = None
    if not any(replica):
        rows_of = {name: own_rows(value) for name, value in divided.items()}
        firsts = {name: first for name, (first, count) in rows_of.items() if count}
        rows = memory.copies(divided[name].to_local() for name in firsts)
        part = {
            name: Rows(copied.contiguous(), firsts[name], split_dim(divided[name]))
            for name, copied in zip(firsts, rows, strict=True)
        }
    rest = {name: _without_divided(entries) for name, entries in state["state"].items()}
    return OwnState(
        part,
        number,
        mesh.size(-1),
        {name: [*value.shape] for name, value in divided.items()},
        _without_divided(weights),
        {**state, "state": rest},
    )


def _without_divided(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not isinstance(value, DTensor)}


class _Source(NamedTuple):
    """A checkpoint's tensors in either format."""

    content: dict[str, Any]
    parts: Parts | None

    def weight_names(self) -> set[str]:
        divided = self.parts.tensors if self.parts is not None else {}
        return {*self.content["model"]} | {
            name.removeprefix(f"{MODEL}.") for name in divided if name.startswith(f"{MODEL}.")
        }

    def read_weight(self, name: str, weight: DTensor) -> None:
        """Fills this rank's rows."""
        own, (first, count), dim = weight.to_local(), own_rows(weight), split_dim(weight)
        if name in self.content["model"]:
            own.copy_(self.content["model"][name].narrow(dim, first, count))
        else:
            assert self.parts is not None
            self.parts.read(f"{MODEL}.{name}", first, own, dim)

    def entries(self, name: str, parameter: DTensor) -> dict[str, Any]:
        """What the optimizer has of a parameter, as `parameter` is divided."""
        own, (first, count), dim = parameter.to_local(), own_rows(parameter), split_dim(parameter)
        (state,) = (optimizer["state"] for optimizer in self.content["optimizers"].values())
        found: dict[str, Any] = {}
        for key, value in state.get(name, {}).items():
            if isinstance(value, Tensor) and value.ndim:
                found[key] = _like(parameter, value.narrow(dim, first, count).to(own.device, copy=True))
            else:
                found[key] = copy.deepcopy(value)
        for divided in self.parts.tensors if self.parts is not None else ():
            kind, _, rest = divided.partition(".")
            key, _, of = rest.partition(".")
            if kind == OPTIMIZER and of == name:
                assert self.parts is not None
                rows = torch.empty_like(own, dtype=self.parts.dtype(divided))
                self.parts.read(divided, first, rows, dim)
                found[key] = _like(parameter, rows)
        return found


@torch.no_grad()
def load_own(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, content: dict[str, Any], parts: Parts | None
) -> None:
    """Loads this rank's rows of weights, of all that is not divided, and, where it is given, of the optimizer's state.

    content: of a state.pt. parts: the tensors it does not hold, if it is a checkpoint of such ranks.

    Raises:
        CheckpointError: the model has other tensors than the checkpoint.
    """
    source, own = _Source(content, parts), model.state_dict()
    if own.keys() != source.weight_names():
        other = sorted(own.keys() ^ source.weight_names())
        raise CheckpointError(f"the checkpoint holds other tensors than the model, such as {other[0]}")
    for name, value in own.items():
        if isinstance(value, DTensor):
            source.read_weight(name, value)
        else:
            value.copy_(content["model"][name])
    if optimizer is not None:
        _load_optimizer(model, optimizer, source)


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, source: _Source) -> None:
    """By parameter name, through the optimizer's own `load_state_dict`."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    (saved,) = source.content["optimizers"].values()
    group_of = {name: group for group in saved["param_groups"] for name in group["params"]}
    groups: list[dict[str, Any]] = []
    state: dict[int, dict[str, Any]] = {}
    count = 0
    for group in optimizer.param_groups:
        ids = range(count, count + len(group["params"]))
        count += len(ids)
        groups.append({**group_of[names[group["params"][0]]], "params": [*ids]})
        for number, parameter in zip(ids, group["params"], strict=True):
            if entries := source.entries(names[parameter], parameter):
                state[number] = entries
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _like(parameter: DTensor, rows: Tensor) -> DTensor:
    """This rank's rows as a tensor that is divided as the parameter is."""
    mesh, shape = parameter.device_mesh, parameter.shape
    return DTensor.from_local(rows, mesh, parameter.placements, shape=shape, stride=parameter.stride())
