"""What 4 gloo ranks send in a step of 2 microbatches, as torch's flight recorder has it: a JSON line of each plan.

A process of its own that has used no autograd yet, so that its ranks can be forked.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections import Counter
from typing import Any

import torch
import torch.distributed

from moe.model import Transformer
from moe.optim.groups import build_groups
from moe.optim.muon import Muon
from moe.train.distributed.sharding import shard_transformer
from tests.ranks import on_ranks

RANKS, MICROBATCHES, VOCAB = 4, 2, 96
SHAPE = {"d_model": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "top_k": 2, "expert_hidden": 32}
PLANS = {
    "DDP": 4,
    "FSDP2": 4,
    "FSDP2 of 2 experts": 2,
    "FSDP2 of 6 experts": 6,
    "FSDP2 in bf16": 4,
    "HSDP": 4,
}  # and how many experts
BYTES = {"Float": 4, "BFloat16": 2, "Byte": 1}


def recorded() -> list[dict[str, Any]]:
    return pickle.loads(torch._C._distributed_c10d._dump_fr_trace())["entries"]


def sizes(entries: list[dict[str, Any]]) -> dict[str, int]:
    """Bytes that one rank brings, by group and kind: its rows of what is gathered, all of what is summed."""
    found: Counter[str] = Counter()
    for entry in entries:
        (dtype,) = entry["input_dtypes"]
        if dtype == "Int":  # which experts have gradients: a number for each
            continue
        group, kind = entry["process_group"][1], entry["profiling_name"].removeprefix("gloo:")
        assert dtype == "Float" or kind == "all_gather", "gradients are summed in fp32"
        found[f"{group} {kind}"] += sum(BYTES[dtype] * torch.Size(shape).numel() for shape in entry["input_sizes"])
    return dict(found)


def steps(rank: int) -> None:
    for plan, experts in PLANS.items():
        model = Transformer(**SHAPE, n_experts=experts, vocab_size=VOCAB, eos_id=0)
        called: Any = model
        if plan == "DDP":
            called = torch.nn.parallel.DistributedDataParallel(model)
        else:
            precision = "amp_bf16" if plan.endswith("bf16") else "fp32"
            shard_transformer(model, world_size=RANKS, on_gpu=False, replicas=1 + (plan == "HSDP"), precision=precision)
        optimizer = Muon(build_groups(model, name="muon", lr=0.1, weight_decay=0.0, momentum_dtype="fp32"))
        before = len(recorded())
        for number in range(MICROBATCHES):
            alone = plan == "DDP" and number < MICROBATCHES - 1  # as Composer does
            with called.no_sync() if alone else contextlib.nullcontext():
                tokens_BS = torch.randint(1, VOCAB, (1, 16))
                with torch.autocast("cpu", torch.bfloat16, enabled=plan.endswith("bf16")):
                    parts = called(tokens_BS, tokens_BS)
                (parts.loss + parts.routers.score_E.sum() + parts.routers.z.sum()).backward()
        after = len(recorded())
        optimizer.step()
        if rank == 0:
            both = sizes(recorded()[before:after]), sizes(recorded()[after:])
            print(json.dumps([plan, *both]), flush=True)


if __name__ == "__main__":
    os.environ["TORCH_FR_BUFFER_SIZE"] = "2000"
    torch.set_num_threads(1)
    on_ranks(RANKS, steps)
