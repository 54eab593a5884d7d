"""Memory: the computed peak of a step against what the device has, and whether one process could take the step.

A check is one process, whatever the run is. Where the ranks share the model (`parallelism.fsdp2`) the peak is that of a
rank's share, while the check itself would hold all of it.
"""

from __future__ import annotations

from dataclasses import replace

from moe.common.units import size
from moe.config import Config
from moe.model.memory import step_memory
from moe.model.step import Step, make_step
from moe.plan.checks.result import Result
from moe.plan.cluster import shared_bytes
from moe.plan.estimate import gpu_memory, largest_microbatch
from moe.train.microbatch import less_memory


def check_memory(config: Config, *, vocab_size: int, ranks: int, launched: bool) -> Result:
    """The computed peak of a step on one of `ranks` against the memory of the device.

    launched: a launcher gave the number of ranks; else it is that of the GPUs here, or 1.
    """
    import torch

    if not torch.cuda.is_available():
        step = _cpu_step(config, vocab_size)
        needed, there, where, hint = step_memory(step).total, _host_memory(), "this machine", ""
        who = ", undivided: the run's ranks share the model" if config.parallelism.fsdp2 else ""
        fix = less_memory(config, step.microbatch, ranks=1)
    else:
        device, asked = torch.cuda.get_device_properties(0), config.device_train_microbatch_size
        there, where = device.total_memory, device.name
        shards = max(1, ranks // config.parallelism.replicas) if config.parallelism.fsdp2 else 1
        batch = max(1, config.global_train_batch_size // ranks)
        step = _gpu_step(config, vocab_size, n_gpus=shards)
        shared = shared_bytes(step, shards, ranks)
        most = largest_microbatch(step, there - shared, batch)
        microbatch = max(1, most) if asked == "auto" else min(int(asked), batch)
        step = replace(step, microbatch=microbatch, accumulated=microbatch < batch)
        needed = gpu_memory(step).total + shared
        hint = f"; the largest microbatch that fits is {most}" if most else ""
        who = _who(config, ranks, shards, launched)
        fix = less_memory(config, step.microbatch, ranks=ranks)
    text = f"a step takes about {size(needed)} at microbatch {step.microbatch}{who} (computed)"
    if needed > there:
        return Result("memory", "warn", f"{text} and {where} has {size(there)}{hint}; {fix}")
    return Result("memory", "pass", f"{text}, of {size(there)}{hint}")


def why_not_alone(config: Config, *, vocab_size: int) -> str | None:
    """Why one process cannot take the step of a run whose ranks share the model; None where it can, or must."""
    import torch

    if not config.parallelism.fsdp2:
        return None
    host, text = _host_memory(), "one process would need {} for the undivided model and {} has {}"
    if not torch.cuda.is_available():
        needed = step_memory(_cpu_step(config, vocab_size)).total
        return text.format(size(needed), "this machine", size(host)) if needed > host else None
    device, asked = torch.cuda.get_device_properties(0), config.device_train_microbatch_size
    microbatch = 1 if asked == "auto" else min(int(asked), config.global_train_batch_size)
    step = replace(_gpu_step(config, vocab_size, n_gpus=1), microbatch=microbatch)
    if (needed := gpu_memory(step).total) > device.total_memory:
        return text.format(size(needed), device.name, size(device.total_memory))
    if (needed := 4 * step.count.total) > host:  # the weights are made there
        return text.format(size(needed), "this machine", size(host))
    return None


def _gpu_step(config: Config, vocab_size: int, *, n_gpus: int) -> Step:
    from moe.train.compiling import wants_compile

    compiled = wants_compile(config.compile, on_gpu=True)  # auto: whether Triton is installed
    return replace(make_step(config, vocab_size, n_gpus=n_gpus, microbatch=1), compiled=compiled)


def _cpu_step(config: Config, vocab_size: int) -> Step:
    asked, batch = config.device_train_microbatch_size, config.global_train_batch_size
    microbatch = max(1, min(4096 // config.max_seq_len if asked == "auto" else int(asked), batch))
    return replace(make_step(config, vocab_size, n_gpus=1, microbatch=microbatch), gpu=False, bf16=False)


def _host_memory() -> int:
    import psutil

    return psutil.virtual_memory().available


def _who(config: Config, ranks: int, shards: int, launched: bool) -> str:
    if ranks == 1:
        return " with the one GPU here" if config.parallelism.fsdp2 and not launched else ""
    each = f" on each of {ranks} ranks" if launched else f" on each of the {ranks} GPUs here"
    if shards == 1:
        return each
    return f"{each}, which share the model" if shards == ranks else f"{each}, {shards} of which share the model"
