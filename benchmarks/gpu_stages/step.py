"""Our own training step by shape: tokens/s, MFU, memory, compile time, and Muon's share of it.

- A microbatch (forward, backward, gradients in memory) and an update (clipping, Muon) are timed apart, on the pack's
  text with its documents; a step of the yaml's batch is as many of the one as it holds, and one of the other.
- MFU is of the matrix product measured just before. Beside it stands the data sheet's, which `moe estimate` goes by.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import torch
from torch._dynamo.utils import counters

from gpu_stages.models import (
    backward,
    forward,
    make_batches,
    make_model,
    make_optimizer,
    matmul_flops,
    seconds_of,
    shape_of,
    wait,
)
from gpu_stages.run import ROOT, Run
from moe.config import load_config
from moe.model.flops import flops_per_token, peak_flops
from moe.model.memory import Step, step_memory
from moe.plan.estimate import MFU

GOAL = 0.40  # of the measured matrix product, at 500m
# in the order of what is asked first; dynamic: compiled for batches of every size, as `auto`'s search leaves it where
# it compiles for 1, then 2; unordered: with `deterministic: false`
SHAPES = ("500m", "500m unordered", "fine", "1b", "1_5b", "medium", "500m eager", "500m dynamic")
NEEDED = 25  # seconds without which no shape is begun: it compiles first


def step(run: Run) -> None:
    ceiling = matmul_flops(run.device)
    run.figure("bf16 matrix product", ceiling / 1e12, "TFLOP/s")
    for name in [name for name in SHAPES if not run.dry or name.startswith("500m")]:
        if run.left() < NEEDED and not run.dry:
            run.figure(f"{name}: left out", f"only {run.left():.0f} s were left")
            continue
        try:
            _measure(run, name, ceiling)
        except torch.OutOfMemoryError as error:
            run.figure(f"{name}: out of memory", str(error).splitlines()[0])
        gc.collect()
        torch._dynamo.reset()
        if not run.dry:
            torch.cuda.empty_cache()


def expected_memory(shape: dict[str, Any], seq_len: int, microbatch: int, **settings: Any) -> Step:
    return Step(**shape, seq_len=seq_len, microbatch=microbatch, **{"gpu": True, "bf16": True, **settings})


def microbatch_for(run: Run, shape: dict[str, int], seq_len: int, most: int = 32) -> int:
    """The largest power of two whose step takes at most 0.8 of the memory, as computed."""
    if run.dry:
        return 2
    memory = 0.8 * torch.cuda.mem_get_info()[1]
    size = most
    while size > 1 and step_memory(expected_memory(shape, seq_len, size)).total > memory:
        size //= 2
    return size


def _measure(run: Run, name: str, ceiling: float) -> None:
    yaml, _, how = name.partition(" ")
    shape, seq_len = shape_of(run, yaml)
    microbatch = microbatch_for(run, shape, seq_len)
    whole = 256 if yaml == "fine" else load_config(ROOT / f"yamls/{yaml}.yaml").global_train_batch_size
    model = make_model(run, shape)
    if how != "eager":
        model.compile_blocks("aot_eager" if run.dry else "inductor")
    optimizer = make_optimizer(model)
    batches = make_batches(run, microbatch, seq_len)
    taken = 0

    def one() -> None:
        nonlocal taken
        batch = batches[taken % len(batches)]
        if how == "unordered":
            forward(run, model, batch)[0].backward()
        else:
            backward(run, model, batch)
        taken += 1

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    counters.clear()
    for size in (1, 2) if how == "dynamic" else ():
        backward(run, model, {key: value[:size] for key, value in batches[0].items()})
    start = time.perf_counter()
    one()
    update()
    optimizer.zero_grad(set_to_none=True)
    wait(run.device)
    first = time.perf_counter() - start
    one()
    graphs = counters["stats"]["unique_graphs"]
    if not run.dry:
        torch.cuda.reset_peak_memory_stats()
    micro_seconds = seconds_of(one, run.device, repeats=5 if not run.dry else 2, warm=1)
    update_seconds = seconds_of(update, run.device, repeats=3 if not run.dry else 1, warm=1)
    peak = torch.cuda.max_memory_allocated() if not run.dry else 0
    step_seconds = whole / microbatch * micro_seconds + update_seconds
    rate = whole * seq_len / step_seconds
    flops = flops_per_token(**shape, seq_len=seq_len)
    sheet = None if run.dry else peak_flops(torch.cuda.get_device_name())
    expected = MFU * sheet / flops if sheet else None
    top = yaml in ("500m", "fine")
    run.figure(f"{name}: microbatch", microbatch, "sequences")
    run.figure(f"{name}: tokens/s", rate, "tokens/s", expected=expected, source="moe estimate", top=top)
    mfu = rate * flops / ceiling
    goal = mfu >= GOAL if name == "500m" else None
    run.figure(f"{name}: MFU of the measured product", mfu, expected=GOAL, source="goal", goal=goal, top=top)
    if sheet:
        run.figure(f"{name}: MFU of the data sheet", rate * flops / sheet, expected=MFU, source="moe estimate")
        computed = step_memory(expected_memory(shape, seq_len, microbatch, compiled=how != "eager")).total
        near = abs(peak / computed - 1) <= 0.10 if name == "500m" else None  # `memory` has more
        run.figure(f"{name}: peak memory", peak / 1e9, "GB", expected=computed / 1e9, source="moe estimate, within 10%",
                   check=near)  # fmt: skip
    run.figure(f"{name}: a microbatch", 1e3 * micro_seconds, "ms")
    run.figure(f"{name}: update (clipping, Muon)", update_seconds / step_seconds, "of the step")
    run.figure(f"{name}: first step", first, "s")
    if how != "eager":
        again = counters["stats"]["unique_graphs"] - graphs
        run.figure(f"{name}: compiled again after the second microbatch", again, expected=0, check=again == 0)
