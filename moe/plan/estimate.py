"""The estimate of one run: parameters, work, memory of a GPU, which GPUs it fits on, time, disk.

- Memory of a GPU = the step's peak (moe.model.memory) + the worst router + slack + what CUDA takes.
- Time = model FLOPs / (GPUs x peak x MFU), 4/3 of that under activation checkpointing, which computes a forward again.
- The MFU is what was published for MoE models of this size (docs/before-a-run.md), a span rather than a number.
- The dense twin has as many active parameters: one expert as wide as all that a token passes, mean over layers.
- The step's peak is held against the CPU's allocator, and against peaks measured on an H200, in tests.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from moe.config import Config, parse_time
from moe.config.schedule import is_unscaled
from moe.config.steps import Steps
from moe.model.flops import ParameterCount, count_parameters, flops_per_token, model_shape
from moe.model.memory import Step, StepMemory, imbalance_bytes, optimizer_bytes, step_memory
from moe.model.step import make_step
from moe.optim import rule
from moe.optim.auto import rounded
from moe.plan.gpus import GPUS, Gpu

SLACK = 0.08  # of the step's peak: blocks that the caching allocator has rounded up or cannot reuse
CUDA = 800 << 20  # context, kernels and workspaces of cuBLAS
NCCL = 500 << 20  # buffers of the collectives, with several GPUs
N_GPUS = (1, 2, 8)
MFU = 0.30
MFU_SPAN = (0.20, 0.35)
DENSE_MFU = 0.40


@dataclass(frozen=True)
class Work:
    steps: int
    tokens: int
    tokens_per_step: int
    flops_per_token: float
    flops: float
    tokens_per_parameter: float
    tokens_per_active_parameter: float


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on one of `n_gpus`."""

    n_gpus: int
    microbatch: int
    step: StepMemory
    imbalance: int
    slack: int
    cuda: int

    @property
    def total(self) -> int:
        return self.step.total + self.imbalance + self.slack + self.cuda


@dataclass(frozen=True)
class Fit:
    """A number of one kind of GPU. `microbatch` is the largest that fits, 0 where none does; `checkpointed` the same
    with activation_checkpointing. cost: None without a price.
    """

    gpu: str
    n_gpus: int
    microbatch: int
    checkpointed: int
    seconds: float
    cost: float | None


@dataclass(frozen=True)
class Disk:
    """`checkpoint` in bytes; `most` is how many there are at one time, the one being written included."""

    checkpoint: int
    most: int

    @property
    def total(self) -> int:
        return self.checkpoint * self.most


def find_work(config: Config, vocab_size: int) -> Work:
    shape = model_shape(config.model, vocab_size)
    count = count_parameters(**shape)
    steps = Steps.of(config)
    tokens = steps.total * steps.tokens_per_step
    flops = flops_per_token(**shape, seq_len=config.max_seq_len)
    return Work(
        steps.total,
        tokens,
        steps.tokens_per_step,
        flops,
        flops * tokens,
        tokens / count.total,
        tokens / count.active,
    )


@dataclass(frozen=True)
class Rates:
    """What the rule of moe/optim/rule.py gives for a run, and Moonlight's fit; outside: what of it was not measured.

    lr: of the matrices, as the run scales their updates. adamw_lr: of AdamW's groups.
    """

    lr: float
    adamw_lr: float
    weight_decay: float
    warmup_steps: int
    moonlight: float
    outside: list[str]


def find_rates(config: Config, vocab_size: int) -> Rates:
    """Rounded as `auto` rounds them; the decay is that of the rule's own rate."""
    run, name = Steps.of(config), config.optimizer.name
    steps = run.tokens / run.tokens_per_step
    size = {"d_model": config.model.d_model, "tokens": run.tokens, "batch": run.tokens_per_step}
    lr = rounded(rule.learning_rate(**size, optimizer=name))
    return Rates(
        lr=lr * rule.UNSCALED if is_unscaled(config.optimizer) else lr,
        adamw_lr=lr,
        weight_decay=rounded(rule.weight_decay(lr, steps=steps)),
        warmup_steps=round(rule.warmup_steps(steps, optimizer=name)),
        moonlight=rule.moonlight_rate(find_work(config, vocab_size).flops),
        outside=rule.outside(**size),
    )


def gpu_memory(step: Step) -> GpuMemory:
    peak, imbalance = step_memory(step), imbalance_bytes(step)
    slack = int(SLACK * (peak.total + imbalance))
    return GpuMemory(step.n_gpus, step.microbatch, peak, imbalance, slack, CUDA + (NCCL if step.n_gpus > 1 else 0))


def largest_microbatch(step: Step, memory: int, rank_batch: int) -> int:
    """The largest power of two, or the device's full batch, whose step fits into `memory` bytes; 0 where none does.

    So `device_train_microbatch_size: auto` chooses, too.
    """
    powers = [1 << i for i in range(rank_batch.bit_length())]
    for size in sorted({*powers, rank_batch} - {0}, reverse=True):
        if gpu_memory(replace(step, microbatch=size, accumulated=size < rank_batch)).total <= memory:
            return size
    return 0


def rank_batch(config: Config, n_gpus: int) -> int:
    """Sequences of one device in a step; 0 where the batch cannot be divided."""
    return 0 if config.global_train_batch_size % n_gpus else config.global_train_batch_size // n_gpus


def find_fits(
    config: Config, vocab_size: int, *, mfu: float, prices: dict[str, float], gpus: tuple[Gpu, ...] = GPUS
) -> list[Fit]:
    """Every GPU of `gpus` in every number. prices: per GPU-hour, by the GPU's name; "" is that of all others."""
    work, fits = find_work(config, vocab_size), []
    for gpu in gpus:
        for n_gpus in N_GPUS:
            batch = rank_batch(config, n_gpus)
            step = make_step(config, vocab_size, n_gpus=n_gpus, microbatch=1)
            plain, checkpointed = (
                largest_microbatch(replace(step, activation_checkpointing=on), gpu.memory, batch)
                for on in (False, True)
            )
            peak = gpu.fp32 if config.precision == "fp32" else gpu.bf16
            flops = work.flops * (4 / 3 if config.activation_checkpointing or not plain else 1)
            seconds = flops / (n_gpus * peak * 1e12 * mfu)
            price = prices.get(gpu.name, prices.get(""))
            cost = None if price is None else price * n_gpus * seconds / 3600
            fits.append(Fit(gpu.name, n_gpus, plain, checkpointed, seconds, cost))
    return fits


def find_memory(config: Config, vocab_size: int, gpu: Gpu) -> list[GpuMemory]:
    """On 1, 2 and 8 of `gpu`, at the config's microbatch; `auto` is the largest that fits, or 1."""
    found = []
    for n_gpus in N_GPUS:
        if batch := rank_batch(config, n_gpus):
            step = make_step(config, vocab_size, n_gpus=n_gpus, microbatch=1)
            size = config.device_train_microbatch_size
            size = max(1, largest_microbatch(step, gpu.memory, batch)) if size == "auto" else min(int(size), batch)
            found.append(gpu_memory(replace(step, microbatch=size, accumulated=size < batch)))
    return found


@dataclass(frozen=True)
class DenseTwin:
    """A dense model with the run's active parameters. Seconds are of one token on one GPU; `most_tokens`: the share of
    the twin's tokens on which the run must be as good to be the faster one.
    """

    parameters: int
    seconds: float
    moe_seconds: float
    most_tokens: float


def find_dense_twin(config: Config, vocab_size: int, gpu: Gpu, *, mfu: float) -> DenseTwin:
    shape = model_shape(config.model, vocab_size)
    passed = (shape["top_k"] + shape["n_shared_experts"]) * shape["expert_hidden"]
    first, layers = shape["first_k_dense_replace"], shape["n_layers"]
    wide = passed if shape["dense_hidden"] is None else shape["dense_hidden"]
    hidden = round((wide * first + passed * (layers - first)) / layers)
    dense = {**shape, "n_experts": 1, "top_k": 1, "expert_hidden": hidden, "n_shared_experts": 0}
    dense |= {"first_k_dense_replace": 0, "dense_hidden": None}
    peak = 1e12 * (gpu.fp32 if config.precision == "fp32" else gpu.bf16)
    seconds = flops_per_token(**dense, seq_len=config.max_seq_len) / (peak * DENSE_MFU)
    moe_seconds = flops_per_token(**shape, seq_len=config.max_seq_len) / (peak * mfu)
    return DenseTwin(count_parameters(**dense).total, seconds, moe_seconds, seconds / moe_seconds)


def find_disk(config: Config, vocab_size: int) -> Disk:
    """A checkpoint holds weights and optimizer state. There are the newest ones, those kept permanently, and the one
    that is being written.
    """
    step = make_step(config, vocab_size, n_gpus=1, microbatch=1)
    work = find_work(config, vocab_size)
    saves = -(-work.steps // max(1, parse_time(config.save_interval).to_steps(work.tokens_per_step)))
    keep = config.save_num_checkpoints_to_keep
    kept = saves
    if keep >= 0:
        pinned = parse_time(config.keep_every).to_tokens(work.tokens_per_step) if config.keep_every else None
        kept = min(saves, keep + (work.tokens // pinned if pinned else 0))
    return Disk(4 * step.count.total + optimizer_bytes(step), min(saves, kept + 1))


def parameters(config: Config, vocab_size: int) -> ParameterCount:
    return count_parameters(**model_shape(config.model, vocab_size))


def as_json(
    config: Config, vocab_size: int, memory: list[GpuMemory], fits: list[Fit], gpu: Gpu, mfu: float
) -> dict[str, Any]:
    """Everything in bytes, seconds and numbers."""
    disk = find_disk(config, vocab_size)
    return {
        "run_name": config.run_name,
        "vocab_size": vocab_size,
        "parameters": parameters(config, vocab_size)._asdict(),
        "work": asdict(find_work(config, vocab_size)),
        "rates": asdict(find_rates(config, vocab_size)),
        "memory": {
            "gpu": gpu.name,
            "bytes": [
                {
                    "n_gpus": found.n_gpus,
                    "microbatch": found.microbatch,
                    **found.step._asdict(),
                    "imbalance": found.imbalance,
                    "slack": found.slack,
                    "cuda": found.cuda,
                    "total": found.total,
                }
                for found in memory
            ],
        },
        "mfu": mfu,
        "mfu_span": MFU_SPAN,
        "gpus": [asdict(fit) for fit in fits],
        "dense_twin": asdict(find_dense_twin(config, vocab_size, gpu, mfu=mfu)),
        "disk": {"checkpoint": disk.checkpoint, "most": disk.most, "total": disk.total},
    }
