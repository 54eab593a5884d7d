"""`moe estimate` against the allocator, phase by phase, eager and compiled; and the sizes that fit into less memory.

- The estimate of each phase stands beside the allocator's peak within it: a miss names the phase it is in.
- A smaller card is this one with set_per_process_memory_fraction. CUDA's own memory is not in that fraction.
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from gpu_stages.models import TINY, forward, make_batches, make_model, make_optimizer, shape_of, wait
from gpu_stages.run import Run
from gpu_stages.step import expected_memory
from moe.model.memory import phases, step_memory
from moe.train.callbacks.fixed_order import fixed_order

WITHIN = 0.10
SMALL = (("500m", 8), ("1b", 14), ("1_5b", 25))  # GB, at 512 tokens per sequence


def memory(run: Run) -> None:
    with fixed_order(not run.dry):  # `deterministic`, as a run has it
        _all(run)


def _all(run: Run) -> None:
    shape, seq_len = shape_of(run, "500m")
    for microbatch in (4, 16) if not run.dry else (1, 2):
        for checkpointing in (False, True):
            _phases(run, shape, seq_len, microbatch, checkpointing=checkpointing)
            _free(run)
    for microbatch in (4, 16) if not run.dry else (2,):
        _phases(run, shape, seq_len, microbatch, compiled=True)
        torch._dynamo.reset()
        _free(run)
    for name, gigabytes in SMALL:
        _small(run, name, gigabytes)
        _free(run)


def _free(run: Run) -> None:
    gc.collect()
    if not run.dry:
        torch.cuda.empty_cache()


def _phases(
    run: Run, shape: dict[str, int], seq_len: int, microbatch: int, *, checkpointing: bool = False,
    compiled: bool = False,
) -> None:  # fmt: skip
    name = f"microbatch {microbatch}{', checkpointed' * checkpointing}{', compiled' * compiled}"
    model = make_model(run, shape, activation_checkpointing=checkpointing)
    if compiled:
        model.compile_blocks("aot_eager" if run.dry else "inductor")
    optimizer = make_optimizer(model)
    batch = make_batches(run, microbatch, seq_len, 1)[0]
    peaks: dict[str, float] = {}

    def peak_of(phase: str) -> None:
        wait(run.device)
        if not run.dry:
            peaks[phase] = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()

    for _ in range(2):  # the second time optimizer state and gradients are there
        forward(run, model, batch)[0].backward()
        peak_of("warm")
        loss = forward(run, model, batch)[0]
        peak_of("loss")
        loss.backward()
        del loss
        peak_of("backward")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        peak_of("optimizer")
    settings: dict[str, Any] = {"activation_checkpointing": checkpointing, "compiled": compiled}
    settings |= {"gpu": not run.dry, "bf16": not run.dry}
    step = expected_memory(shape, seq_len, microbatch, **settings)
    computed = {phase.phase: phase for phase in phases(step)}
    whole = step_memory(step)
    if run.dry:
        run.figure(f"{name}: computed", whole.total / 1e6, "MB")
        return
    measured = max(peaks[key] for key in ("loss", "backward", "optimizer"))
    good = abs(measured / whole.total - 1) <= WITHIN
    run.figure(f"{name}: peak", measured / 1e9, "GB", expected=whole.total / 1e9, source="moe estimate, within 10%",
               check=good, top=True)  # fmt: skip
    for key in ("loss", "backward", "optimizer"):
        within = {"loss": ("forward", "loss"), "backward": ("backward", "end")}.get(key, (key,))
        expected = max(computed[name].total for name in within if name in computed)
        run.figure(f"{name}: in {key}", peaks[key] / 1e9, "GB", expected=expected / 1e9, source="moe estimate")
    parts = {key: value / 1e9 for key, value in whole._asdict().items() if key != "phase"}
    listed = ", ".join(f"{key} {value:.2f}" for key, value in parts.items())
    run.figure(f"{name}: computed parts, GB", listed)


def _small(run: Run, name: str, gigabytes: int) -> None:
    """The largest microbatch that is computed to fit takes three steps within that memory."""
    shape, _ = shape_of(run, name)
    seq_len = 512 if not run.dry else 64
    limit = gigabytes * 1e9
    if not run.dry:
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / torch.cuda.mem_get_info()[1]))
    try:
        for checkpointing in (False, True):
            steps = {size: expected_memory(shape, seq_len, size, activation_checkpointing=checkpointing)
                     for size in (16, 8, 4, 2, 1)}  # fmt: skip
            sizes = [size for size, step in steps.items() if step_memory(step).total * 1.08 < limit]
            if sizes:
                break
        if not sizes:
            run.figure(f"{name} in {gigabytes} GB", "does not fit, as computed")
            return
        size = min(sizes[0], 2 if run.dry else 16)
        case = f"{name} in {gigabytes} GB, 512 tokens per sequence, microbatch {size}{', checkpointed' * checkpointing}"
        try:
            model = make_model(run, TINY if run.dry else shape, activation_checkpointing=checkpointing)
            optimizer = make_optimizer(model)
            for batch in make_batches(run, size, seq_len, 3):
                for _ in range(2):
                    forward(run, model, batch)[0].backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            wait(run.device)
            run.figure(case, "runs", expected="runs", check=True)
        except torch.OutOfMemoryError as error:
            run.figure(case, str(error).splitlines()[0], expected="runs", check=False)
    finally:
        if not run.dry:
            torch.cuda.set_per_process_memory_fraction(1.0)
