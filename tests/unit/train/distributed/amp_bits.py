"""Steps of ranks that gather under amp in bf16, against such that gather in fp32, and of 4 ranks in fp32 against one: a
JSON line of each kind of run.

A process of its own that has used no autograd yet, so that its ranks can be forked.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from moe.model import Transformer
from moe.optim.groups import build_groups
from moe.optim.muon import Muon
from moe.train.checkpointing.host_memory import HostMemory
from moe.train.checkpointing.rank_state import load_own, own_state
from moe.train.distributed.sharding import shard_transformer
from tests.ranks import on_ranks

SHAPE = {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "top_k": 2, "expert_hidden": 24, "vocab_size": 96}
MORE: dict[str, Any] = {"n_experts": 3, "n_shared_experts": 1, "eos_id": 0}
STEPS, MICROBATCHES = 3, 2
KINDS = {2: [("muon", 1)], 4: [("muon", 1), ("adamw", 2)]}  # ranks -> optimizer and replicas


def trained(optimizer: str, replicas: int, precision: str) -> tuple[list[float], dict[str, torch.Tensor], list[str]]:
    """Losses, what a checkpoint's part holds, and the dtypes of a block's gathered parameters."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    with torch.device("meta"):
        model = Transformer(**SHAPE, **MORE)
    shard_transformer(model, world_size=ranks, on_gpu=False, replicas=replicas, seed=5, precision=precision)
    whole = Transformer(**SHAPE, **MORE, seed=9)
    load_own(model, None, {"model": whole.state_dict()}, None)
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(p.full_tensor(), q), "a checkpoint is loaded as before"  # type: ignore[operator]
    groups = build_groups(model, name=optimizer, lr=0.01, weight_decay=0.1, momentum_dtype="fp32")
    update, losses, dtypes = Muon(groups), [], set[str]()
    for p in model.blocks[0].parameters():
        assert isinstance(p, DTensor) and type(p.to_local()) is torch.Tensor
    model.blocks[0].moe.register_forward_pre_hook(
        lambda module, _: dtypes.update(str(p.dtype) for p in (module.w13, module.router.weight))
    )
    for number in range(STEPS * MICROBATCHES):
        tokens_BS = torch.randint(1, 96, (2, 16), generator=torch.Generator().manual_seed(10 * number + rank))
        with torch.autocast("cpu", torch.bfloat16):
            parts = model(tokens_BS, tokens_BS)
        loss = parts.loss / 30 + parts.routers.score_E.square().sum() / 1e4
        loss.backward()
        losses.append(loss.item())
        if number % MICROBATCHES:
            update.step()
            update.zero_grad()
    state = own_state(model, update, HostMemory())
    return losses, {name: rows.values for name, rows in (state.part or {}).items()}, sorted(dtypes)


def compared(rank: int) -> None:
    for optimizer, replicas in KINDS[dist.get_world_size()]:
        exact, gathered = (trained(optimizer, replicas, precision) for precision in ("fp32", "amp_bf16"))
        same = exact[0] == gathered[0] and exact[1].keys() == gathered[1].keys()
        same = same and all(torch.equal(rows, gathered[1][name]) for name, rows in exact[1].items())
        votes = torch.tensor([int(same), len(exact[1])])
        dist.all_reduce(votes)
        if rank == 0:
            kind = f"{optimizer}, {dist.get_world_size()} ranks, {replicas} replicas"
            print(json.dumps([kind, *votes.tolist(), exact[2], gathered[2]]), flush=True)


def alone(rank: int) -> None:
    """6 experts on 4 ranks, each rank's tokens its own, against one model that sees them all."""
    losses: list[list[float]] = []
    models = []
    for shared in (True, False):
        with torch.device("meta" if shared else "cpu"):
            model = Transformer(**{**SHAPE, **MORE, "n_experts": 6}, seed=5)
        if shared:
            shard_transformer(model, world_size=4, on_gpu=False, seed=5)
        update = Muon(build_groups(model, name="muon", lr=0.01, weight_decay=0.1, momentum_dtype="fp32"))
        losses.append([])
        for number in range(STEPS):
            for of in [rank] if shared else range(4):
                tokens_BS = torch.randint(1, 96, (2, 16), generator=torch.Generator().manual_seed(10 * number + of))
                parts = model(tokens_BS, tokens_BS)
                loss = parts.loss / 30 + parts.routers.score_E.square().sum() / 1e4
                (loss if shared else loss / 4).backward()
                if of == rank:
                    losses[-1].append(loss.item())
            update.step()
            update.zero_grad()
        models.append(model)
    apart = [0.0]
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        apart.append((p.full_tensor() - q).abs().max().item())  # type: ignore[operator]
    off = max(abs(one - other) for one, other in zip(*losses, strict=True))
    moe: Any = models[0].blocks[0].moe
    if rank == 0:
        along = [weight.placements[-1].dim for weight in (moe.w13, moe.w2)]
        print(json.dumps(["alone", along, off, max(apart)]), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for count in KINDS:
        on_ranks(count, compared)
    on_ranks(4, alone)
