"""Where a training step's time and memory go.

Decisions:
- Whole steps are timed as they are: data, microbatches, clipping, optimizer. Each part of a block is then timed alone,
  forward and backward on inputs of the same shape, and multiplied by layers and microbatches; what is left of the whole
  is the rest: embedding, norms, residuals, launches. With `compile` the parts are compiled alone, so that fusion over
  their borders shows as a smaller rest (it may fall below 0).
- The chip's limit is a matrix product measured in the same run, not a data sheet's.
- The parts' inputs are random: their experts are chosen about evenly. In the steps the router chooses, unless
  `balanced` deals the tokens out in turn: a step that is then faster waits for its most loaded expert, and no kernel is
  to blame.
- One process, without Composer's Trainer, whose own work is not in the table.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.core import Precision
from composer.core.precision import get_precision_context
from torch import Tensor

from moe import build
from moe.config import Config
from moe.model.attention import rope_table
from moe.model.experts import moe_experts
from moe.model.flops import ParameterCount, count_parameters, model_shape
from moe.model.loss import linear_cross_entropy
from moe.model.precision import compute_dtype
from moe.model.router import Routing
from moe.train.alone import microbatch_loss
from moe.train.inputs import Inputs
from moe.train.microbatch import find_microbatch
from moe.train.model import MoEModel
from moe.train.start import COMPILED
from moe.train.temporary import own_temporary_folder
from moe.train.tf32 import forbid_tf32

PEAK_SIZE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is the limit


@dataclasses.dataclass(frozen=True)
class Row:
    """One part of a step. `saved`: bytes kept for the backward pass of one microbatch, over all layers."""

    part: str
    seconds: float
    flops: float = 0.0
    saved: int = 0


@dataclasses.dataclass(frozen=True)
class Profile:
    """Medians over steps; `rows` add up to `step_seconds`. `idle`: share of the step in which the GPU has no kernel."""

    device: str
    precision: str
    samples: int  # of a step
    microbatch: int
    seq_len: int
    rows: list[Row]
    step_seconds: float
    step_flops: float
    peak_flops: float
    memory: dict[str, int]  # bytes
    idle: float | None


def part_flops(count: ParameterCount, *, attention_width: int, seq_len: int, top_share: float) -> dict[str, float]:
    """Forward and backward FLOPs per token by part; their sum is `flops_per_token`.

    attention_width: layers x heads x width of a head. top_share: top_k / n_experts.
    """
    return {
        "attention": 6.0 * count.attention + 6.0 * attention_width * seq_len,
        "router": 6.0 * count.router,
        "experts": 6.0 * count.experts * top_share,
        "loss": 6.0 * (count.head or count.embedding),
    }


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
    model = build.build_model(config, inputs).to(device)
    if model.transformer.compiled:
        say(COMPILED)
    if balanced:
        deal_out(model)
    optimizer, _ = build.build_optimizer(config, model)
    samples, seq_len = config.global_train_batch_size, config.max_seq_len
    microbatch = build.microbatch_size(config, 1, device.type == "cuda")
    if not isinstance(microbatch, int):
        say("device_train_microbatch_size: auto; trying how many sequences fit ...")
        microbatch = find_microbatch(
            model, optimizer, rank_batch=samples, seq_len=seq_len, precision=config.precision, device=device
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
    whole, data, update = (statistics.median(part[i] for part in timed) for i in range(3))
    rows = _part_rows(config, inputs, model, batch, microbatch, say)
    rows += [Row("optimizer", update), Row("waiting for data", data)]
    rows.append(Row("the rest", whole - sum(row.seconds for row in rows)))
    say("timing a matrix product, the chip's limit ...")
    return Profile(
        device=torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        precision=config.precision,
        samples=samples,
        microbatch=microbatch,
        seq_len=seq_len,
        rows=rows,
        step_seconds=whole,
        step_flops=model.flops_per_token * samples * seq_len,
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
        return routing._replace(expert_TK=expert_TK, stats=routing.stats._replace(counts_E=counts_E))

    for router in model.transformer.routers:
        router.forward = partial(dealt, router.forward)  # type: ignore[method-assign]


class _Loop:
    """Steps on the run's own data."""

    def __init__(
        self, config: Config, inputs: Inputs, model: MoEModel, optimizer: torch.optim.Optimizer, microbatch: int
    ):
        self.config, self.model, self.optimizer, self.microbatch = config, model, optimizer, microbatch
        self.device = model.device
        spec = build.build_train_spec(config, inputs, 1, inputs.text)
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
        """Seconds of the whole, of waiting for data, of clipping and update."""
        start = time.perf_counter()
        batch = self.batch()
        data = time.perf_counter() - start
        for first in range(0, len(batch["tokens"]), self.microbatch):
            part = {key: value[first : first + self.microbatch] for key, value in batch.items()}
            microbatch_loss(self.model, part, self.config.precision)[1].backward()
        _wait(self.device)
        update = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        _wait(self.device)
        end = time.perf_counter()
        return end - start, data, end - update


def _part_rows(
    config: Config,
    inputs: Inputs,
    model: MoEModel,
    batch: dict[str, Tensor],
    microbatch: int,
    say: Callable[[str], None],
) -> list[Row]:
    net, settings = model.transformer, config.model
    attn: Any = net.blocks[0].attn
    moe = net.expert_layers[0]
    device = model.device
    part = {key: value[:microbatch] for key, value in batch.items()}
    tokens_BS = part["tokens"]
    with get_precision_context(Precision(config.precision)):
        x_BSD = torch.randn(*tokens_BS.shape, settings.d_model, device=device)
        dtype = compute_dtype(x_BSD)
        cos, sin = rope_table(seq_len=tokens_BS.shape[1], head_dim=net.head_dim, theta=net.rope_theta, device=device)
        documents = net._documents(tokens_BS, part.get("document_ends"), dtype) if settings.document_mask else None
    rope, x_TD = (cos.to(dtype), sin.to(dtype)), x_BSD.flatten(0, 1)
    with torch.no_grad():
        routing = moe.router(x_TD)
    weight_TK = routing.weight_TK.requires_grad_()

    def route(x: Tensor) -> Tensor:
        found = moe.router(x)
        return found.weight_TK.sum() + found.stats.score_E.sum() + found.stats.z

    def experts(x: Tensor) -> Tensor:
        return moe_experts(x, weight_TK, routing.expert_TK, moe.w13, moe.w2, routing.stats.counts_E)

    def loss(x: Tensor) -> Tensor:
        fused = net.loss_backend if x.is_cuda else None
        labels = part["labels"].flatten()
        return linear_cross_entropy(x, net.head_weight, labels, z_weight=settings.z_loss, fused=fused).loss

    layers, expert_layers = settings.n_layers, len(net.expert_layers)
    times = config.global_train_batch_size / microbatch
    wanted: list[tuple[str, Callable[[Tensor], Tensor], Tensor, int]] = [
        ("attention", lambda x: attn(x, rope, documents), x_BSD, layers),
        ("router", route, x_TD, expert_layers),
        ("experts", experts, x_TD, expert_layers),
        ("loss", loss, x_TD, 1),
    ]
    shape = model_shape(settings, inputs.vocab_size)
    flops = part_flops(
        count_parameters(**shape),
        attention_width=layers * settings.n_heads * net.head_dim,
        seq_len=config.max_seq_len,
        top_share=settings.top_k / settings.n_experts,
    )
    tokens = config.global_train_batch_size * config.max_seq_len
    rows = []
    for name, function, x, repeats in wanted:
        say(f"timing the {name} of one {'microbatch' if repeats == 1 else 'layer'} alone ...")
        if net.compiled and name != "loss":
            function = torch.compile(function)
        seconds, saved = _time_part(function, x.clone().requires_grad_(), config.precision)
        rows.append(Row(name, seconds * repeats * times, flops[name] * tokens, saved * repeats))
    model.zero_grad(set_to_none=True)
    return rows


def _time_part(function: Callable[[Tensor], Tensor], x: Tensor, precision: str) -> tuple[float, int]:
    """Seconds of forward and backward, median of 5; bytes that are kept in between, without the input and weights."""
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if not isinstance(value, torch.nn.Parameter) and storage.data_ptr() != x.untyped_storage().data_ptr():
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    def once() -> None:
        with get_precision_context(Precision(precision)):
            out = function(x)
        out.backward(torch.ones_like(out))
        _wait(x.device)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        once()
    once()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), sum(kept.values())


def _trace(step: Callable[[], Any], path: Path) -> float | None:
    """Writes a step's Chrome trace. Returns the share of it in which the GPU had nothing to do; None without a GPU."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # its error that there is no GPU
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        seconds = step()[0]
    profiler.export_chrome_trace(str(path))
    if not on_gpu:
        return None
    busy = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    return max(0.0, 1 - busy / seconds)


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
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
