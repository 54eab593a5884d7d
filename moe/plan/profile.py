"""Where a training step's time and memory go.

Decisions:
- Complete steps are timed as they are: data, microbatches, clipping, optimizer. What the parts of a
  block, timed alone (moe/plan/profile_parts.py), leave of it is the rest: embedding, norms, residuals, launches.
- The chip's limit is a matrix product measured in the same run, not a data sheet's.
- In the steps the router chooses the experts, unless `balanced` deals the tokens out in turn: a step that is then
  faster waits for its most loaded expert, and no kernel is to blame.
- One process, without Composer's Trainer, whose own work is not in the table.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType

from moe.common.errors import InputError
from moe.config import Config
from moe.model.router import RouterStats, Routing
from moe.model.step import make_step
from moe.optim.groups import build_optimizer
from moe.plan.profile_parts import Row, part_rows, wait
from moe.train.callbacks.fixed_order import fixed_order
from moe.train.compiling import COMPILED
from moe.train.composer_model import MoEModel, build_model
from moe.train.inputs import Inputs
from moe.train.loaders import build_train_spec
from moe.train.microbatch import microbatch_size
from moe.train.microbatch_trial import expected_bytes, find_microbatch
from moe.train.temporary_folder import own_temporary_folder
from moe.train.tf32 import forbid_tf32

PEAK_SIZE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is the limit


@dataclasses.dataclass(frozen=True)
class Profile:
    """Medians over steps; `rows` add up to `step_seconds`. `idle`: share of the step in which the GPU has no kernel."""

    device: str
    precision: str
    samples: int  # sequences of a step
    microbatch: int
    seq_len: int
    rows: list[Row]
    step_seconds: float
    step_flops: float
    peak_flops: float
    memory: dict[str, int]  # bytes
    idle: float | None


def profile_run(
    config: Config,
    inputs: Inputs,
    *,
    steps: int,
    trace: Path | None,
    say: Callable[[str], None],
    balanced: bool = False,
) -> Profile:
    """Builds what the config says, takes `steps` steps and times the parts.

    trace: where one step's Chrome trace is written. balanced: every expert gets the same number of tokens.
    """
    forbid_tf32()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    say("building the model ...")
    model = build_model(config, inputs).to(device)
    if model.transformer.compiled:
        say(COMPILED)
    if balanced:
        deal_out(model)
    optimizer = build_optimizer(config.optimizer, model.transformer)
    samples, seq_len = config.global_train_batch_size, config.max_seq_len
    step = make_step(config, inputs.vocab_size, n_gpus=1, microbatch=1)
    microbatch = microbatch_size(config, 1, device.type == "cuda")
    if not isinstance(microbatch, int):
        say("device_train_microbatch_size: auto; trying how many sequences fit ...")
        microbatch = find_microbatch(
            model,
            optimizer,
            rank_batch=samples,
            seq_len=seq_len,
            precision=config.precision,
            device=device,
            deterministic=config.deterministic,
            expected=expected_bytes(step, model, world_size=1),
        )
    say(f"taking {steps + 1} steps of {samples} x {seq_len} tokens in microbatches of {microbatch} ...")
    with own_temporary_folder(), closing(_Loop(config, inputs, model, optimizer, microbatch)) as loop:
        seconds = loop.step()[0]  # compiles, allocates the optimizer's state, fills the loader
        say(f"  the first, which is not counted: {seconds:.3g} s; now {steps} that are")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        timed = []
        for number in range(1, steps + 1):
            timed.append(loop.step())
            say(f"  step {number} of {steps}: {timed[-1][0]:.3g} s")
        memory = _memory(model, optimizer)
        idle = None
        if trace is not None:
            say("tracing one more step ...")
            idle = _trace(loop.step, trace)
        batch = loop.batch()
    step_seconds, data, update = (statistics.median(part[i] for part in timed) for i in range(3))
    rows = part_rows(config, inputs, model, batch, microbatch, say)
    rows += [Row("optimizer", update), Row("waiting for data", data)]
    rows.append(Row("the rest", step_seconds - sum(row.seconds for row in rows)))
    say("timing a matrix product, the chip's limit ...")
    return Profile(
        device=torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        precision=config.precision,
        samples=samples,
        microbatch=microbatch,
        seq_len=seq_len,
        rows=rows,
        step_seconds=step_seconds,
        step_flops=step.flops_per_token * samples * seq_len,
        peak_flops=_peak_flops(device, config.precision),
        memory=memory,
        idle=idle,
    )


def deal_out(model: MoEModel) -> None:
    """Gives the model's routers choices of their own: experts in turn, with the weights of the router's own choice."""

    def dealt(choose: Callable[[Tensor], Routing], x_TD: Tensor) -> Routing:
        routing = choose(x_TD)
        n_experts = routing.stats.counts_E.shape[0]
        number_N = torch.arange(routing.expert_TK.numel(), device=x_TD.device)
        expert_TK = (number_N % n_experts).view_as(routing.expert_TK)
        counts_E = torch.zeros(n_experts, dtype=torch.int64, device=x_TD.device)
        counts_E.scatter_add_(0, number_N % n_experts, torch.ones_like(number_N))
        _, score_E, z, entropy, logit_max, needed_EB = routing.stats
        # by name: a block that torch compiles cannot return what `_replace` (2.11) or a slice of one (2.7) has made
        stats = RouterStats(counts_E, score_E, z, entropy, logit_max, needed_EB)
        return Routing(routing.weight_TK, expert_TK, stats)

    for router in model.transformer.routers:
        router.forward = partial(dealt, router.forward)  # type: ignore[method-assign]


class _Loop:
    """Steps on the run's own data."""

    def __init__(
        self, config: Config, inputs: Inputs, model: MoEModel, optimizer: torch.optim.Optimizer, microbatch: int
    ):
        self.config, self.model, self.optimizer, self.microbatch = config, model, optimizer, microbatch
        self.device = model.device
        spec = build_train_spec(config, inputs, 1)
        self.loader, self.transform = spec.dataloader, spec.batch_transforms
        self.batches: Any = iter(self.loader)

    def batch(self) -> dict[str, Tensor]:
        """The next one on the device; after an epoch's last the first of the next."""
        try:
            batch = next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        return {key: value.to(self.device) for key, value in self.transform(batch).items()}

    def close(self) -> None:
        """Ends the loader's workers: the parts are timed without them."""
        self.batches = None

    def step(self) -> tuple[float, float, float]:
        """Seconds of the step, of waiting for data, of clipping and update."""
        start = time.perf_counter()
        batch = self.batch()
        data = time.perf_counter() - start
        for first in range(0, len(batch["tokens"]), self.microbatch):
            part = {key: value[first : first + self.microbatch] for key, value in batch.items()}
            with fixed_order(self.config.deterministic and self.device.type == "cuda"):
                self.model.mean_loss(part, self.config.precision)[1].backward()
        wait(self.device)
        update = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        wait(self.device)
        end = time.perf_counter()
        return end - start, data, end - update


def _trace(step: Callable[[], Any], path: Path) -> float | None:
    """Writes a step's Chrome trace. Returns the share of it in which the GPU had nothing to do; None without a GPU."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # its error that there is no GPU
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        seconds = step()[0]
    if path.is_file():
        path.unlink()
    profiler.export_chrome_trace(str(path))
    if not path.exists():  # it says nothing
        raise InputError(f"--trace ({path}) could not be written; give another file")
    if not on_gpu:
        return None
    return max(0.0, 1 - busy_seconds(profiler.events() or []) / seconds)


def busy_seconds(events: Iterable[Any]) -> float:
    """For how long at least one kernel or copy was running on the GPU, of a profiler's events.

    The operators that launched them carry their time, too, and annotations span them: neither counts. Kernels on
    several streams overlap.
    """
    found = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    busy = end = 0.0
    for start, stop in sorted((event.time_range.start, event.time_range.end) for event in found):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return busy / 1e6


def _memory(model: MoEModel, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    weights = sum(p.nbytes for p in model.parameters())
    state = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor))
    found = {"weights": weights, "gradients": weights, "optimizer": state}
    if torch.cuda.is_available():
        found["torch's peak"] = torch.cuda.max_memory_allocated()
    return found


def _peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of the best of 10 products of square matrices."""
    n = PEAK_SIZE[device.type]
    dtype = {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}.get(precision, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        a @ b
        wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)
