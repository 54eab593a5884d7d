"""FSDP2: parameters, gradients and optimizer state divided among the ranks (`parallelism.fsdp2`).

Decisions:
- `fully_shard` on each block and on the rest, before the optimizer is made and before the Trainer: Composer then finds
  a sharded model and leaves it as it is. Each rank saves and loads its own rows (state.py). Composer's own
  `parallelism_config={"fsdp2": ...}` shards inside the Trainer, too late for `automatic_microbatch`, and under amp
  gathers all in bf16, norms and router too.
- With replicas (HSDP) the mesh is replicate x shard: ranks that follow each other, mostly of one machine, share one.
- Built on the meta device, initialised by share: no rank ever holds the complete model.
- Split over dim 0: experts by expert, so that Muon works on full matrices. FSDP2 moves and keeps them as if they were a
  multiple of the ranks; where they are not, they are split over the first other dimension that the ranks divide, each
  rank having some rows (or columns) of every expert. Where none does, over dim 0, and the start says so.
- Weights are kept in fp32, and under amp gathered in its dtype where their products cast them (gathered.py). FSDP2's
  own way has one dtype for a block, and its norms and router must not be rounded; groups of their own would put their
  hooks into the middle of the block's compiled graph.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Shard

from moe.common.errors import InputError
from moe.model import Transformer
from moe.model.init import init_weights
from moe.model.split import expert_dim, expert_shapes, is_padded
from moe.train.distributed.gathered import gather_in, keep_gradients

TESTED = (2, 11)
AUTOCAST = {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}


def check_torch() -> None:
    """Raises InputError where this torch does not train the same under FSDP2: 2.7 doubles gradients on gloo."""
    version = torch.__version__.split("+")[0]
    if tuple(int(part) for part in version.split(".")[:2]) < TESTED:
        raise InputError(
            f"parallelism.fsdp2 (true) needs torch {TESTED[0]}.{TESTED[1]} or newer, and this is {version}; "
            "update torch, or set parallelism.fsdp2=false"
        )


def padded_experts(shape: tuple[int, int, int], world_size: int, replicas: int) -> str | None:
    """What to say where more ranks share the model than it has experts, and cannot divide these either: torch pads them
    to as many as ranks.

    shape: n_experts, d_model, expert_hidden.
    """
    ranks, n_experts = world_size // replicas, shape[0]
    if ranks <= n_experts or not any(is_padded(weight, ranks) for weight in expert_shapes(*shape)):
        return None
    more = range(replicas + 1, world_size)
    fewer = next((n for n in more if not world_size % n and world_size // n <= n_experts), None)
    fix = f"set parallelism.replicas={fewer}" if fewer else "set parallelism.fsdp2=false"
    return (
        f"parallelism: {ranks} ranks share {n_experts} experts, which FSDP2 moves and keeps as if they were {ranks}: "
        f"{ranks / n_experts:.3g} times as much; {fix}"
    )


def _placement(parameter: nn.Parameter, ranks: int) -> Shard | None:
    return Shard(expert_dim(tuple(parameter.shape), ranks)) if parameter.ndim == 3 else None


def shard_transformer(
    model: Transformer,
    *,
    world_size: int,
    on_gpu: bool,
    replicas: int = 1,
    seed: int | None = None,
    precision: str = "fp32",
) -> None:
    """Leaves each rank its share of every parameter (a DTensor), on its device. The ranks' weights must be the same.

    replicas: how often the ranks hold the model (HSDP); ranks that follow each other share one. seed: of the initial
    weights of a model on the meta device, which each rank makes for its share alone. precision: Composer's name of it.
    """
    shape = (world_size,) if replicas == 1 else (replicas, world_size // replicas)
    mesh = init_device_mesh("cuda" if on_gpu else "cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    for block in model.blocks:
        if precision in AUTOCAST:
            gather_in(block, AUTOCAST[precision])
        fully_shard(block, mesh=mesh, shard_placement_fn=partial(_placement, ranks=mesh.size(-1)))
        if precision in AUTOCAST:
            keep_gradients(block)
    fully_shard(model, mesh=mesh)
    if seed is not None:
        model.to_empty(device=mesh.device_type)
        for name, buffer in model.named_buffers():
            if not name.endswith("router.bias_E"):
                raise ValueError(f"{name}: what this buffer starts with is not known here; add it")
            buffer.zero_()
        init_weights(model, n_layers=len(model.blocks), seed=seed)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)
