"""`device_train_microbatch_size`: how many sequences a forward pass holds.

`auto` on a GPU is found by a trial before training, and kept in run.json. A size that is lowered when memory runs out
in mid-run, as Composer does, would differ between the parts of a resumed run, and with it rounding and dropout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from moe.common.errors import RunFailed
from moe.common.units import say
from moe.config import Config
from moe.model.step import Step
from moe.train.checkpointing.run_folder import RunFolder
from moe.train.composer_model import MoEModel
from moe.train.distributed.ranks import WORLD_SIZE
from moe.train.microbatch_trial import expected_bytes, find_microbatch

CPU_TOKENS_PER_MICROBATCH = 4096  # fits the cache and a small machine's memory; larger is no faster there


class OutOfMemory(RunFailed):
    """A step does not fit the GPU's memory."""

    of_one_rank = True


def less_memory(config: Config, microbatch: int | str, *, ranks: int) -> str:
    """What a step that takes too much memory can still do without, in the order in which it costs.

    microbatch: of that step; auto stands for 1.
    """
    fixes = ["lower device_train_microbatch_size"] if microbatch not in (1, "auto") else []
    if not config.activation_checkpointing:
        fixes.append("set activation_checkpointing=true")
    if config.parallelism.fsdp2:
        fixes.append("train on more ranks, which divide the model further (check=true with their launcher counts them)")
    elif ranks > 1:
        fixes.append("set parallelism.fsdp2=true, which divides the model among the ranks")
    return ", then ".join(fixes) or "take a smaller model"


def microbatch_size(config: Config, world_size: int, on_gpu: bool) -> int | str:
    """Sequences per forward pass: as set; `auto` is found by a trial on GPU, and computed from max_seq_len on CPU."""
    rank_batch = config.global_train_batch_size // world_size
    size = config.device_train_microbatch_size
    if size == "auto":
        return "auto" if on_gpu else max(1, min(rank_batch, CPU_TOKENS_PER_MICROBATCH // config.max_seq_len))
    return min(int(size), rank_batch)


def choose_microbatch(
    size: int | str, config: Config, step: Step, folder: RunFolder, model: MoEModel, optimizer: torch.optim.Optimizer
) -> int:
    """`size`, as `microbatch_size` gives it; where that takes a trial, as `automatic_microbatch`."""
    if isinstance(size, int):
        return size
    return automatic_microbatch(config, step, folder, model, optimizer, world_size=WORLD_SIZE, report=say)


def automatic_microbatch(
    config: Config,
    step: Step,
    folder: RunFolder,
    model: MoEModel,
    optimizer: torch.optim.Optimizer,
    *,
    world_size: int,
    report: Callable[[str], None],
) -> int:
    """The size that run.json holds for this configuration, device and number of ranks; else one that is found now.

    Raises:
        InputError: not even one sequence fits.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    valid_for: dict[str, Any] = {
        "model": dataclasses.asdict(config.model),
        "optimizer": [config.optimizer.name, config.optimizer.momentum_dtype],
        "max_seq_len": config.max_seq_len,
        "rank_batch": config.global_train_batch_size // world_size,
        "precision": config.precision,
        "activation_checkpointing": config.activation_checkpointing,
        "compile": config.compile,
        "deterministic": config.deterministic,
        "ranks": world_size,
        "fsdp2": config.parallelism.fsdp2,
        "replicas": config.parallelism.replicas,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    known = folder.record.get("microbatch")
    if known is not None and known["valid_for"] == valid_for:
        return known["size"]
    report("device_train_microbatch_size: auto; trying how many sequences fit ...")
    size = find_microbatch(
        model,
        optimizer,
        rank_batch=valid_for["rank_batch"],
        seq_len=config.max_seq_len,
        precision=config.precision,
        device=device,
        deterministic=config.deterministic,
        expected=expected_bytes(step, model, world_size) if device.type == "cuda" else None,
    )
    folder.note(microbatch={"size": size, "valid_for": valid_for})
    report(f"  microbatch {size}; run.json keeps it for every resume")
    return size
