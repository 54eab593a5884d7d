"""A trial of how many sequences a forward pass may hold: real steps, from the size that is computed to fit.

- A trial is a complete step: forward, backward, update. The update has a learning rate of 0 and its state is dropped,
  so the trial leaves no trace in weights or optimizer.
- The trial's sequences are one token repeated, cut into documents of 16 tokens by EOS. All hidden states but those of
  EOS are the same, so nearly all tokens choose the same experts: the worst imbalance there can be. And the list of
  documents is as long as real text makes it, which attention's backward pass takes memory for.
- The first size that is tried is the largest that is computed to fit (moe/model/memory.py), and the next one only where
  what was measured lets it be possible: each size is compiled anew.
- A tenth of the memory stays free, for fragmentation and for what other libraries take. A share that was set with
  set_per_process_memory_fraction is all the memory there is.
- The trial's sizes make compiled blocks ones of any size; they are forgotten, so that training has its own size's.
- A sharded model (FSDP2) computes with all ranks together, and one that runs out of memory leaves the others waiting.
  So a size is tried only where the trials before it, the first of them half a sequence, let expect that it fits.
"""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable
from typing import Any

import torch
from composer.utils import dist, get_device

from moe.common.errors import InputError
from moe.model.documents import document_ends
from moe.model.memory import TOKENS_A_DOCUMENT, imbalance_bytes, step_memory
from moe.model.step import Step
from moe.train.callbacks.fixed_order import fixed_order
from moe.train.composer_model import MoEModel
from moe.train.distributed.sharding import is_sharded

SHARE_OF_MEMORY = 0.9


def find_microbatch(
    model: MoEModel,
    optimizer: torch.optim.Optimizer,
    *,
    rank_batch: int,
    seq_len: int,
    precision: str,
    device: torch.device,
    deterministic: bool = False,
    expected: Callable[[int], float] | None = None,
) -> int:
    """Largest power of two (or the full `rank_batch`) of sequences of `seq_len` tokens whose step fits on every rank.

    expected: computed bytes of a trial of so many sequences; without it, and for a sharded model, sizes are tried from
    1 on. Moves the model to `device`; weights, gradients and optimizer are afterwards as they were.

    Raises:
        InputError: not even one sequence fits.
    """
    model.to(device)
    spare = [_gradient_buckets(model)] if dist.get_world_size() > 1 and not is_sharded(model.transformer) else []
    budget = SHARE_OF_MEMORY * _memory(device)

    def peak_of(size: float) -> float:
        return _peak_of_step(model, optimizer, math.ceil(size), int(seq_len * min(1, size)), precision)

    with fixed_order(deterministic and device.type == "cuda"):
        if is_sharded(model.transformer):
            fits = _search_sharded(peak_of, rank_batch, budget)
        else:
            fits = _search(peak_of, rank_batch, budget, expected)
    del spare
    _forget(model, optimizer)
    if model.transformer.compiled:
        torch._dynamo.reset()
    if not fits:
        raise InputError(
            f"model: one sequence of {seq_len:,} tokens does not fit (budget {budget / 1e9:.1f} GB of {device.type}); "
            "set activation_checkpointing=true or optimizer.momentum_dtype=bf16, or take a smaller model"
        )
    return fits


def expected_bytes(step: Step, model: MoEModel, world_size: int) -> Callable[[int], float]:
    """What a trial of so many sequences is computed to take on a GPU, of a model that is not sharded."""
    step = dataclasses.replace(step, accumulated=True, compiled=model.transformer.compiled)
    buckets = 4 * step.count.total if world_size > 1 else 0

    def bytes_of(size: int) -> float:
        of_size = dataclasses.replace(step, microbatch=size)
        return step_memory(of_size).total + imbalance_bytes(of_size) + buckets

    return bytes_of


def _search(
    peak_of: Callable[[float], float], rank_batch: int, budget: float, expected: Callable[[int], float] | None
) -> int:
    """The largest size that fits on every rank, 0 where none does; upwards from the largest that is expected to fit."""
    sizes = [*(1 << i for i in range((rank_batch - 1).bit_length())), rank_batch]
    at = 0
    if expected is not None:
        at = max((i for i, size in enumerate(sizes) if _on_every_rank(expected(size) < budget)), default=0)
    peak = peak_of(sizes[at])
    if not _on_every_rank(peak < budget):
        below = reversed(sizes[:at])
        return next((size for size in below if _on_every_rank(peak_of(size) < budget)), 0)
    for fits, size in zip(sizes[at:], sizes[at + 1 :], strict=False):
        more = expected(size) - expected(fits) if expected is not None else 0.0
        possible = budget / SHARE_OF_MEMORY  # all memory: what is computed may be too much by a tenth
        if not _on_every_rank(peak + more < possible):
            return fits
        peak = peak_of(size)
        if not _on_every_rank(peak < budget):
            return fits
    return rank_batch


def _search_sharded(peak_of: Callable[[float], float], rank_batch: int, budget: float) -> int:
    """As `_search`, from 1 on, and only sizes that the trials before let expect to fit."""
    size, fits, expected = 1, 0, 0.0
    try:
        tried, peak = 0.5, peak_of(0.5)
        while fits < rank_batch and _on_every_rank(expected < budget):
            before, peak = peak, peak_of(size)
            if not _on_every_rank(peak < budget):
                break
            fits, size = size, min(2 * size, rank_batch)
            expected = peak + (peak - before) / (fits - tried) * (size - fits)
            tried = fits
    except torch.OutOfMemoryError:
        if size > 1:
            raise InputError(
                f"device_train_microbatch_size (auto): a trial of {size} sequences ran out of memory, against "
                f"expectation ({expected / 1e9:.1f} of {budget / 1e9:.1f} GB); set device_train_microbatch_size={fits}"
            ) from None
    return fits


def _peak_of_step(model: MoEModel, optimizer: torch.optim.Optimizer, size: int, seq_len: int, precision: str) -> float:
    """Bytes that a step takes at its peak, 0 on CPU; infinite where memory runs out, unless the model is sharded."""
    on_gpu = model.device.type == "cuda"
    _forget(model, optimizer)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        _step(model, optimizer, size, seq_len, precision)
    except torch.OutOfMemoryError:
        if is_sharded(model.transformer):
            raise
        return math.inf
    return torch.cuda.max_memory_allocated() if on_gpu else 0.0


def _step(model: MoEModel, optimizer: torch.optim.Optimizer, size: int, seq_len: int, precision: str) -> None:
    """Two microbatches, the second with the first one's gradients in memory, and an update that changes nothing."""
    eos_id = model.transformer.eos_id
    tokens = torch.full((size, seq_len), 0 if eos_id else 1)
    tokens[:, TOKENS_A_DOCUMENT - 1 :: TOKENS_A_DOCUMENT] = eos_id
    batch = {"tokens": tokens, "labels": tokens, "document_ends": document_ends(tokens, eos_id)}
    batch = {key: value.to(model.device) for key, value in batch.items()}
    for _ in range(2):
        model.mean_loss(batch, precision)[1].backward()
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _forget(model: MoEModel, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    optimizer.state.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _on_every_rank(fits: bool) -> bool:
    answer = get_device(None).tensor_to_device(torch.tensor(int(fits)))
    dist.all_reduce(answer, reduce_operation="MIN")
    return bool(answer)


def _gradient_buckets(model: MoEModel) -> Any:
    """What DDP will take beside the gradients."""
    return [torch.empty_like(p) for p in model.parameters()]


def _memory(device: torch.device) -> float:
    """Bytes that this process may use: what is free and what it holds, and no more than the share it was given."""
    if device.type != "cuda":
        return float("inf")
    index = torch.cuda.current_device() if device.index is None else device.index  # a share is asked for by number only
    free, total = torch.cuda.mem_get_info(index)
    return min(free + torch.cuda.memory_reserved(index), torch.cuda.get_per_process_memory_fraction(index) * total)
