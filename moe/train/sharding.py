"""FSDP2: parameters, gradients and optimizer state divided among the ranks (`parallelism.fsdp2`).

Decisions:
- `fully_shard` on each block and on the rest, before the optimizer is made and before the Trainer: Composer then finds
  a sharded model, leaves it as it is, and saves and loads the full state in DDP's format. Its own
  `parallelism_config={"fsdp2": ...}` shards inside the Trainer, too late for `automatic_microbatch`, and under amp
  casts norms, router and the residual stream to bf16 as well.
- Split over dim 0: experts by expert, so that Muon works on whole matrices. With more ranks than experts some hold
  none.
- Under amp, matrices are gathered in the compute dtype: a cast of gathered fp32 weights would stay in memory until the
  backward pass. Norms and router, which compute in fp32, are gathered as they are, a group of their own in each block;
  so are embedding and head, which cast by themselves. Gradients are reduced in fp32.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from moe.errors import InputError
from moe.model import Transformer
from moe.model.norm import RMSNorm
from moe.model.router import Router

COMPUTE_DTYPES = {"fp32": None, "amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}
TESTED = (2, 11)


def check_torch() -> None:
    """Raises InputError where this torch does not train the same under FSDP2: 2.7 doubles gradients on gloo."""
    version = torch.__version__.split("+")[0]
    if tuple(int(part) for part in version.split(".")[:2]) < TESTED:
        raise InputError(
            f"parallelism.fsdp2 (true) needs torch {TESTED[0]}.{TESTED[1]} or newer, and this is {version}; "
            "update torch, or set parallelism.fsdp2=false"
        )


def shard_transformer(model: Transformer, *, precision: str, world_size: int, on_gpu: bool) -> None:
    """Leaves each rank its share of every parameter (a DTensor), on its device. The ranks' weights must be the same."""
    mesh = init_device_mesh("cuda" if on_gpu else "cpu", (world_size,))
    compute = MixedPrecisionPolicy(
        param_dtype=COMPUTE_DTYPES[precision], reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in model.blocks:
        exact: list[nn.Module] = [part for part in block.modules() if isinstance(part, (RMSNorm, Router))]
        fully_shard(exact, mesh=mesh)
        fully_shard(block, mesh=mesh, mp_policy=compute)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)
