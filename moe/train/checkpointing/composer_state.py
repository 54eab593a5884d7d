"""What a checkpoint holds of Composer's State, copied to host memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from composer import State
from torch.utils._pytree import tree_flatten, tree_unflatten

from moe.train.checkpointing.host_memory import HostMemory

SAVED = ("model", "optimizers", "algorithms", "callbacks", "scaler", "timestamp", "rank_zero_seed", "dataset_state")
DIVIDED = ("model", "optimizers")  # where ranks share the model


def full_state(state: State) -> dict[str, Any]:
    """All of it, not copied yet."""
    return _true_position({key: value for key, value in state.state_dict().items() if key in SAVED}, state)


def undivided_state(state: State) -> dict[str, Any]:
    """All but model and optimizers, which Composer would gather."""
    every = state.serialized_attributes
    state.serialized_attributes = [name for name in every if name not in DIVIDED]
    try:
        return full_state(state)
    finally:
        state.serialized_attributes = every


def without_empty_scalers(content: dict[str, Any]) -> dict[str, Any]:
    """A CPU's checkpoint as a GPU can load it: a scaler that is switched off saves nothing, and one that is on refuses
    that. It then begins as in a new run.
    """
    scalers = {name: scaler for name, scaler in content.get("scaler", {}).items() if scaler}
    return {
        **{key: value for key, value in content.items() if key != "scaler"},
        **({"scaler": scalers} if scalers else {}),
    }


def to_host(content: dict[str, Any], memory: HostMemory) -> dict[str, Any]:
    """A copy that training does not change; the next one into the same memory does."""
    leaves, structure = tree_flatten(content)
    tensors = iter(memory.copies([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]))
    copies = [next(tensors) if isinstance(leaf, torch.Tensor) else copy.deepcopy(leaf) for leaf in leaves]
    return tree_unflatten(copies, structure)


def _true_position(content: dict[str, Any], state: State) -> dict[str, Any]:
    """Composer saves the dataset's own idea of the epoch, which lags at an epoch's end; the clock's is the true one."""
    position = content["dataset_state"]["train"]
    position["epoch"] = int(state.timestamp.epoch)
    position["sample_in_epoch"] = int(state.timestamp.sample_in_epoch)
    return content
