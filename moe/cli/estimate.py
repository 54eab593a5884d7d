"""What a run needs, from its yaml alone, in a second and without a GPU: parameters, memory, time, cost, disk."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from moe.cli.estimate_cluster import add_cluster_arguments, estimate_cluster
from moe.common.units import clock, short, show, size

if TYPE_CHECKING:
    from moe.config import Config
    from moe.plan.estimate import Fit, GpuMemory
    from moe.plan.gpus import Gpu

GB = 1e9
CHINCHILLA = 20  # tokens a parameter of a dense model, for a fixed amount of compute (arXiv 2203.15556)
MINUTE = 59.5  # seconds; what is rounded to one
LEAST_MFU, MOST_PRICE = 0.01, 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", help="the yaml of the run")
    add("overrides", nargs="*", metavar="key=value", help="settings to change, as in training")
    add(
        "--mfu",
        type=float,
        default=None,
        help="share of the GPU's peak that is reached (default: 0.3, and what 0.2 to 0.35 would mean)",
    )
    add(
        "--price",
        action="append",
        default=[],
        metavar="[GPU=]PRICE",
        help="per GPU-hour: 2.50 for all, or H100=2.50; may be given several times",
    )
    add("--gpu", default="H100", help="the GPU of the table of memory (default: H100)")
    add("--gpu-memory", metavar="SIZE", help="of a --gpu that the table does not have, e.g. 48GB")
    add("--gpu-tflops", type=float, help="its peak, dense, in the run's precision, e.g. 180")
    add("--vocab-size", type=int, default=None, help="tokens in the vocabulary, where nothing on disk gives it")
    add_cluster_arguments(parser)
    add("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    from moe.common.errors import InputError
    from moe.config import load_config
    from moe.optim.auto import resolve
    from moe.plan import estimate as plan
    from moe.plan.gpus import GPUS, chosen_gpu
    from moe.plan.vocabulary import find_vocab_size

    config, chosen = resolve(load_config(args.config, args.overrides))
    if args.mfu is not None and not LEAST_MFU <= args.mfu <= 1:
        raise InputError(f"--mfu ({args.mfu}) must be at least {LEAST_MFU} and at most 1, as 0.3")
    mfu = plan.MFU if args.mfu is None else args.mfu
    vocab_size, source = find_vocab_size(config, args.vocab_size)
    gpu = chosen_gpu(args.gpu, args.gpu_memory, args.gpu_tflops)
    gpus = GPUS if gpu in GPUS else (*(known for known in GPUS if known.name != gpu.name), gpu)
    prices = _prices(args.price, gpus)
    fits = plan.find_fits(config, vocab_size, mfu=mfu, prices=prices, gpus=gpus)
    memory = plan.find_memory(config, vocab_size, gpu)
    cluster, numbers = estimate_cluster(args, config, vocab_size, gpu, mfu)
    if args.json:
        found = plan.as_json(config, vocab_size, memory, fits, gpu, mfu)
        show(json.dumps(found if numbers is None else {**found, "cluster": numbers}, indent=1))
        return 0
    show(f"{config.run_name}  ({args.config})")
    for part in (
        _parameters(config, vocab_size, source),
        _work(config, vocab_size),
        [*_rates(config, vocab_size), *([f"  auto: {', '.join(map(str, chosen))}"] if chosen else [])],
        _memory(config, memory, gpu),
        [*_fits(config, fits, mfu, bool(prices), gpus), *(_span(fits, gpu, mfu) if args.mfu is None else [])],
        *([_dense_twin(config, vocab_size, gpu, mfu)] if config.model.n_experts > 1 else []),
        _disk(config, vocab_size),
        *([cluster] if cluster else []),
    ):
        show()
        for line in part:
            show(line.rstrip())
    return 0


def _prices(given: list[str], gpus: tuple[Gpu, ...]) -> dict[str, float]:
    from moe.common.errors import InputError
    from moe.config.bounds import brief
    from moe.plan.gpus import find_gpu

    prices = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            price = float(number)
            if not 0 <= price <= MOST_PRICE:
                raise ValueError
        except ValueError:
            raise InputError(
                f"--price ({brief(text)}) is not a price from 0 to {MOST_PRICE:,}; write 2.50, or H100=2.50"
            ) from None
        if name:
            find_gpu(name, gpus)
        wanted = name.lower().replace(" ", "")
        names = [gpu.name for gpu in gpus if wanted in gpu.name.lower().replace(" ", "")] if name else [""]
        prices.update(dict.fromkeys(names, price))
    return prices


def _parameters(config: Config, vocab_size: int, source: str) -> Iterator[str]:
    from moe.model.flops import experts_in_words
    from moe.plan.estimate import parameters

    count = parameters(config, vocab_size)
    idle = count.total - count.active
    yield f"{'PARAMETERS':<14}{'total':>16}{'active per token':>20}"
    rare = [name for name in ("shared", "dense") if getattr(count, name)]
    for name in ("embedding", "head", "attention", "router", "experts", *rare, "norms"):
        total = getattr(count, name)
        active = total - idle if name == "experts" else total
        tied = "  the embedding's" if name == "head" and not total else ""
        yield f"  {name:<12}{total:>16,}{active:>20,}{tied}"
    yield f"  {'all':<12}{count.total:>16,}{count.active:>20,}"
    yield f"  vocabulary of {vocab_size:,} tokens ({source}); {experts_in_words(config.model)}"


def _work(config: Config, vocab_size: int) -> Iterator[str]:
    from moe.plan.estimate import find_work

    work = find_work(config, vocab_size)
    batch = f"{config.global_train_batch_size} x {config.max_seq_len:,} = {work.tokens_per_step:,}"
    yield "WORK"
    yield f"  steps         {work.steps:,} of {batch} tokens; {short(work.tokens)} tokens in total"
    per_token = f"{work.flops_per_token / 1e9:.3g} G a token (forward and backward)"
    yield f"  FLOPs         {per_token}, {work.flops:.3g} in total"
    yield (
        f"  tokens per parameter  {short(work.tokens_per_active_parameter)} active, "
        f"{short(work.tokens_per_parameter)} total "
        f"(compute-optimal for a dense model: about {CHINCHILLA}, arXiv 2203.15556)"
    )


def _rates(config: Config, vocab_size: int) -> Iterator[str]:
    from moe.optim.rates import adamw_rate, main_rate
    from moe.plan.estimate import find_rates

    rule, optimizer = find_rates(config, vocab_size), config.optimizer
    peak, own = main_rate(asdict(optimizer)), adamw_rate(asdict(optimizer))
    yield f"{'RATES':<14}{'of this run':>14}{'by the rule':>14}   (for width, tokens and batch: docs/learning.md)"
    yield f"  {'peak rate':<12}{peak:>14g}{rule.lr:>14.3g}   Moonlight's fit: {rule.moonlight:.3g}"
    if (own, rule.adamw_lr) != (peak, rule.lr):
        yield "  AdamW's     " + f"{own:>14g}{rule.adamw_lr:>14.3g}"
    yield f"  {'decay':<12}{optimizer.weight_decay:>14g}{rule.weight_decay:>14.3g}"
    yield f"  {'warmup':<12}{config.scheduler.t_warmup:>14}{f'{rule.warmup_steps}ba':>14}"
    if rule.outside:
        yield "  outside of what the rule was measured at:"
        yield f"  {', '.join(rule.outside)}"


def _memory(config: Config, memory: list[GpuMemory], gpu: Gpu) -> Iterator[str]:
    auto = " (auto: the largest)" if config.device_train_microbatch_size == "auto" else ""
    yield f"MEMORY of one {gpu.name} in GB, computed ({config.precision})"
    heads = [f"{found.n_gpus} GPU{'s' if found.n_gpus > 1 else ''}" for found in memory]
    yield f"  {'':<44}" + "".join(f"{head:>10}" for head in heads)
    yield f"  {'microbatch, sequences' + auto:<44}"[:60].ljust(36) + "".join(
        f"{found.microbatch:>10}" for found in memory
    )
    momentum = f"Muon {config.optimizer.momentum_dtype}, AdamW" if config.optimizer.name == "muon" else "AdamW"
    rows = {
        "weights": [found.step.weights for found in memory],
        "gradients": [found.step.gradients for found in memory],
        f"optimizer ({momentum})": [found.step.optimizer for found in memory],
        "copies of weights": [found.step.copies for found in memory],
        "activations": [found.step.activations for found in memory],
        "loss (logits, head's gradient)": [found.step.loss for found in memory],
        "workspace": [found.step.workspace for found in memory],
        "worst expert imbalance": [found.imbalance for found in memory],
        "allocator slack": [found.slack for found in memory],
        "CUDA and its libraries": [found.cuda for found in memory],
        "all": [found.total for found in memory],
        "free": [gpu.memory - found.total for found in memory],
    }
    for name, sizes in rows.items():
        yield f"  {name:<44}" + "".join(f"{_gb(number):>10}" for number in sizes)
    yield f"  {'the peak is in':<44}" + "".join(f"{found.step.phase:>10}" for found in memory)
    if any(not found.step.gradients for found in memory):
        yield "  Gradients are 0 where the microbatch is the full batch: they grow as activations are freed."
    yield "  Several GPUs: FSDP2; weights, gradients and optimizer / GPUs, and 2 unsharded blocks, embedding and head."


def _fits(config: Config, fits: list[Fit], mfu: float, priced: bool, gpus: tuple[Gpu, ...]) -> Iterator[str]:
    from moe.plan.estimate import N_GPUS

    kind = "fp32" if config.precision == "fp32" else "bf16"
    cell = 32 if priced else 22
    yield f"GPUS at {mfu:.0%} of their {kind} peak; microbatch: the largest (with activation_checkpointing=true)"
    yield f"  {'':<23}" + "".join(f"{f'{n} GPU' + ('s' if n > 1 else ''):>{cell}}" for n in N_GPUS)
    heads = f"{'microbatch':>13}{'time':>9}{'cost':>10}"[:cell]
    yield f"  {'':<15}{'TFLOP/s':>8}" + heads * len(N_GPUS)
    for gpu in gpus:
        cells = []
        for fit in [fit for fit in fits if fit.gpu == gpu.name]:
            sizes = f"{fit.microbatch or '-'} ({fit.checkpointed or '-'})"
            fitting = fit.checkpointed or fit.microbatch
            price = "" if fit.cost is None or not fitting else _money(fit.cost)
            cost = f"{price:>10}" if priced else ""
            cells.append(f"{sizes:>13}{_time(fit.seconds) if fitting else '-':>9}{cost}")
        yield f"  {gpu.name:<15}{gpu.fp32 if kind == 'fp32' else gpu.bf16:>8.5g}" + "".join(cells)
    if any(not fit.microbatch and fit.checkpointed for fit in fits) or config.activation_checkpointing:
        yield "  With activation checkpointing the time is 4/3 of the plain one."
    if any(fit.seconds < MINUTE and (fit.microbatch or fit.checkpointed) for fit in fits):
        yield "  So small a run takes longer than its FLOPs: starts, kernel launches, saves, evaluations come on top."
    batch = config.global_train_batch_size
    if uneven := [str(n) for n in N_GPUS if batch % n]:
        yield f"  {' and '.join(uneven)} GPUs cannot divide a global_train_batch_size of {batch} evenly."


def _span(fits: list[Fit], gpu: Gpu, mfu: float) -> Iterator[str]:
    from moe.plan.estimate import MFU_SPAN

    slow, fast = MFU_SPAN
    times = [
        f"{_time(fit.seconds * mfu / fast)} to {_time(fit.seconds * mfu / slow)} on {fit.n_gpus}"
        for fit in fits
        if fit.gpu == gpu.name and (fit.microbatch or fit.checkpointed)
    ]
    factors = f"{mfu / fast:.2f} to {mfu / slow:.2f} times these times"
    yield f"  Published for MoE models of this size: {slow:.0%} to {fast:.0%}, which is {factors}"
    if times:
        yield f"  ({gpu.name}: {', '.join(times)})."
    yield "  docs/before-a-run.md names the sources; `make gpu` measures what yours reaches."


def _dense_twin(config: Config, vocab_size: int, gpu: Gpu, mfu: float) -> Iterator[str]:
    from moe.plan.estimate import DENSE_MFU, find_dense_twin

    twin = find_dense_twin(config, vocab_size, gpu, mfu=mfu)
    yield f"DENSE TWIN, with as many active parameters ({twin.parameters:,}), on one {gpu.name}"
    yield (
        f"  time a token  {1e6 * twin.seconds:.3g} us at {DENSE_MFU:.0%} of the peak, this model "
        f"{1e6 * twin.moe_seconds:.3g} us at {mfu:.0%}"
    )
    yield f"  To win on the clock this model may need at most {twin.most_tokens:.0%} of the twin's tokens."


def _gb(count: float) -> str:
    """Bytes in GB. A small run's parts are thousandths of one; what is not there is a plain 0."""
    if not count:
        return "0"
    gb = count / GB
    return f"{gb:.2f}" if abs(gb) >= 0.1 else f"{gb:.3f}" if abs(gb) >= 0.001 else "<0.001"


def _time(seconds: float) -> str:
    """As `clock`, but of a run of seconds two digits, however short it is."""
    if seconds >= MINUTE:
        return clock(seconds)
    return f"{seconds:.0f}s" if seconds >= 9.95 else f"{seconds:#.2g}s" if seconds >= 0.001 else "<1ms"


def _money(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 100 else f"{cost:.2f}" if cost >= 0.01 or not cost else "<0.01"


def _disk(config: Config, vocab_size: int) -> Iterator[str]:
    from moe.plan.estimate import find_disk

    disk = find_disk(config, vocab_size)
    forever = f", one for each {config.keep_every} kept permanently" if config.keep_every else ""
    keep = config.save_num_checkpoints_to_keep
    yield "DISK"
    yield f"  checkpoint    {size(disk.checkpoint)} (weights, optimizer), every {config.save_interval}"
    yield (
        f"  at most       {disk.most} x {size(disk.checkpoint)} = {size(disk.total)}: "
        f"{'all' if keep < 0 else f'the newest {keep}'}{forever}, one being written"
    )
