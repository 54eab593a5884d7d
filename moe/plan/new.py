"""A yaml for a run of so many tokens: what is wanted becomes settings, each with the number it came from.

- Begins with a yaml of ours (`like`; else 500m, whose shape is then chosen). Its own number of tokens gives its own
  settings again; with another one batch, rate, warmup, decay and intervals follow.
- Batch: that of the yaml times (tokens / its tokens)^0.383, the exponent of nanochat's rule (github.com/karpathy/
  nanochat, scripts/base_train.py); rounded to a number of sequences that most numbers of GPUs divide, and these do.
- Rate, warmup and weight decay: moe/optim/rule.py, of which docs/learning.md says what is measured.
- Saves and evaluations: every 500 steps, in a short run at least twice; from 10,000 steps on a tenth of the run each is
  kept for ever.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from moe.common.errors import InputError
from moe.common.units import clock, short, size
from moe.config import Config, parse_time
from moe.optim import rule
from moe.plan.estimate import find_rates, find_work, parameters
from moe.plan.gpus import GPUS, Gpu
from moe.plan.sizing import SMALLEST, TOKENS_PER_PARAMETER, Fit, find_fit, largest, shape_for

BATCH_GROWTH = 0.383
MOST_INTERVAL, MANY_STEPS = 500, 10_000
LEAST_STEPS = 10
MOST_GPUS = 4096
MOST_MISSED = 0.1  # of the number of parameters that was asked for


@dataclass(frozen=True)
class Wanted:
    """What a run is to be. tokens None: those of the yaml it is like. shape_free: the shape is to be chosen, of about
    `params` or `active` parameters, or as large as fits. hours: the most it may take.
    """

    tokens: int | None
    gpu: Gpu
    n_gpus: int = 1
    params: int | None = None
    active: int | None = None
    hours: float | None = None
    shape_free: bool = True


def with_data(config: Config, folder: str) -> Config:
    """The same on converted data in `folder`; its sequences and tokenizer, where it is there already."""
    if "://" in folder:
        raise InputError(f"--data ({folder}) must be a folder of this machine; then set train_data.remote in the yaml")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InputError(f"--data ({folder}) is a file; give the folder that `moe convert` wrote")
    assert config.eval_data is not None
    tokens_per_step = config.global_train_batch_size * config.max_seq_len
    config = replace(
        config,
        train_data=replace(config.train_data, local=folder),
        eval_data=replace(config.eval_data, local=folder),
    )
    try:
        meta = json.loads((Path(folder) / "meta.json").read_text(encoding="utf-8"))
        length, tokenizer = int(meta["seq_len"]), str(meta["tokenizer"])
        batch = max(1, round(tokens_per_step / length))
        return replace(config, max_seq_len=length, tokenizer=tokenizer, global_train_batch_size=batch)
    except FileNotFoundError:
        return config
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"--data ({folder}): meta.json cannot be read ({type(error).__name__}: {error})") from None


def for_tokens(like: Config, tokens: int | None, n_gpus: int) -> Config:
    """`like` for another number of tokens: batch, rates and intervals follow. Its own number leaves all as it is."""
    own = parse_time(like.max_duration)
    own_batch = like.global_train_batch_size * like.max_seq_len
    own_tokens = own.to_tokens(own_batch)
    same = tokens in (None, own_tokens)
    tokens = tokens or own_tokens
    batch = like.global_train_batch_size

    def batch_for(tokens: int) -> int:
        return _rounded_batch(own_batch * (tokens / own_tokens) ** BATCH_GROWTH / like.max_seq_len, n_gpus)

    if not same or batch % n_gpus:
        batch = batch_for(tokens)
    tokens_per_step = batch * like.max_seq_len
    steps = -(-tokens // tokens_per_step)
    if steps < LEAST_STEPS:
        enough = LEAST_STEPS * tokens_per_step
        while (more := LEAST_STEPS * batch_for(enough) * like.max_seq_len) > enough:  # with the tokens the batch grows
            enough = more
        raise InputError(
            f"--tokens ({short(tokens)}) makes {steps} steps of {batch} x {like.max_seq_len} tokens; give at least "
            f"{-(-enough // 1000)}k"
        )
    interval = f"{_interval(steps)}ba"
    assert like.eval_data is not None
    evaluated = like.eval_data.max_batches * own_batch
    config = replace(
        like,
        max_duration=f"{tokens}tok",
        global_train_batch_size=batch,
        eval_data=replace(like.eval_data, max_batches=max(1, -(-evaluated // tokens_per_step))),
        save_interval=interval,
        eval_interval=interval,
        keep_every=f"{tokens // 10}tok" if steps >= MANY_STEPS else None,
    )
    return config if same else with_rates(config)


def with_rates(config: Config) -> Config:
    """Rate, decay and warmup by the rule."""
    tokens_per_step = config.global_train_batch_size * config.max_seq_len
    tokens = parse_time(config.max_duration).to_tokens(tokens_per_step)
    steps, name = tokens / tokens_per_step, config.optimizer.name
    lr = _digits(rule.learning_rate(d_model=config.model.d_model, tokens=tokens, batch=tokens_per_step, optimizer=name))
    decay = _digits(rule.weight_decay(lr, steps=steps))
    warmup = round(rule.warmup_steps(steps, optimizer=name)) * tokens_per_step
    return replace(
        config,
        optimizer=replace(config.optimizer, lr=lr, weight_decay=decay),
        scheduler=replace(config.scheduler, t_warmup=f"{warmup}tok"),
    )


def make(like: Config, wanted: Wanted, vocab_size: int) -> tuple[Config, Fit]:
    """The run's config, and how it fits.

    Raises:
        InputError: it does not fit the card or the hours; names what would.
    """
    base = for_tokens(like, wanted.tokens, wanted.n_gpus)
    tokens = find_work(base, vocab_size).tokens
    seconds = None if wanted.hours is None else wanted.hours * 3600

    def build(count: int, active: bool = False) -> Config:
        return with_rates(replace(base, model=shape_for(base.model, vocab_size, count, active=active)))

    if not wanted.shape_free:
        config = base
    elif asked := wanted.params or wanted.active:
        config = build(asked, active=wanted.params is None)
        _check_met(config, asked, wanted, vocab_size)
    else:
        most = max(SMALLEST, tokens / TOKENS_PER_PARAMETER)
        found = largest(build, vocab_size, wanted.gpu, wanted.n_gpus, most=most, seconds=seconds)
        if found is None:
            raise InputError(
                f"no size of {short(tokens)} tokens fits {_cards(wanted)}{_within(wanted)}; "
                "give fewer --tokens, more --hours, more --gpus or another --gpu"
            )
        return with_fit(*found), found[1]
    fit = find_fit(config, vocab_size, wanted.gpu, wanted.n_gpus)
    if not fit.microbatch or (seconds is not None and fit.seconds > seconds):
        raise InputError(_refusal(config, fit, wanted, vocab_size, build))
    return with_fit(config, fit), fit


def _check_met(config: Config, asked: int, wanted: Wanted, vocab_size: int) -> None:
    count = parameters(config, vocab_size)
    flag, found = ("--params", count.total) if wanted.params else ("--active", count.active)
    if abs(found / asked - 1) > MOST_MISSED:
        raise InputError(f"{flag} ({short(asked)}): the nearest shape has {short(found)}; ask for about that")


def with_fit(config: Config, fit: Fit) -> Config:
    return replace(
        config,
        activation_checkpointing=config.activation_checkpointing or fit.checkpointing,
        parallelism=replace(config.parallelism, fsdp2=config.parallelism.fsdp2 or fit.sharded),
    )


def _refusal(config: Config, fit: Fit, wanted: Wanted, vocab_size: int, build: Callable[[int], Config]) -> str:
    """What does not fit, and what would: a smaller size, more hours, more or other GPUs."""
    count = parameters(config, vocab_size)
    seconds = None if wanted.hours is None else wanted.hours * 3600
    would = []
    smaller = largest(build, vocab_size, wanted.gpu, wanted.n_gpus, most=count.total, seconds=seconds)
    if smaller is not None:
        instead = "" if wanted.shape_free else " in the place of --like"
        would.append(f"--params {short(parameters(smaller[0], vocab_size).total)}{instead}")
    if fit.microbatch:
        text = f"takes {clock(fit.seconds)} on {_cards(wanted)}, more than {wanted.hours:g} hours"
        would.append(f"--hours {math.ceil(fit.seconds / 3600)}")
    else:
        text = f"needs {size(fit.memory)} on {_cards(wanted)}, which has {size(wanted.gpu.memory)}"
    for n_gpus in (2, 4, 8, 16, 32, 64):
        if n_gpus > wanted.n_gpus and _fits(config, vocab_size, wanted.gpu, n_gpus, seconds):
            would.append(f"--gpus {n_gpus}")
            break
    other = next((gpu for gpu in GPUS if _fits(config, vocab_size, gpu, wanted.n_gpus, seconds)), None)
    if other is not None:
        would.append(f"--gpu '{other.name}'")
    end = f"; it would with {', or '.join(would)}" if would else "; give fewer --tokens or --params"
    tokens = short(find_work(config, vocab_size).tokens)
    return f"a run of {short(count.total)} parameters on {tokens} tokens {text}{end}"


def _fits(config: Config, vocab_size: int, gpu: Gpu, n_gpus: int, seconds: float | None) -> bool:
    if config.global_train_batch_size % n_gpus:
        return False
    fit = find_fit(config, vocab_size, gpu, n_gpus)
    return bool(fit.microbatch) and (seconds is None or fit.seconds <= seconds)


def _cards(wanted: Wanted) -> str:
    return f"{wanted.n_gpus} x {wanted.gpu.name}"


def _within(wanted: Wanted) -> str:
    return "" if wanted.hours is None else f" within {wanted.hours:g} hours"


def _rounded_batch(sequences: float, n_gpus: int) -> int:
    """The nearest number of sequences that `n_gpus` divide, and 64 or 8 where it is that large."""
    unit = 64 if sequences >= 96 else 8 if sequences >= 12 else 1
    unit = math.lcm(unit, n_gpus)
    return max(unit, round(sequences / unit) * unit)


def _interval(steps: int) -> int:
    """The largest of 1, 5, 10, 50, 100, 500 steps that goes into the run twice."""
    return max(step for step in (1, 5, 10, 50, 100, MOST_INTERVAL) if step <= max(1, steps // 2))


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


def notes(config: Config, fit: Fit, wanted: Wanted, vocab_size: int) -> dict[str, str]:
    """Where each number came from, by its key."""
    work, rates, count = find_work(config, vocab_size), find_rates(config, vocab_size), parameters(config, vocab_size)
    batch, length = config.global_train_batch_size, config.max_seq_len
    warmup = parse_time(config.scheduler.t_warmup, zero=True).to_tokens(work.tokens_per_step)
    assert config.eval_data is not None
    found = {
        "max_seq_len": "tokens a sequence; the data must be converted with the same --seq-len",
        "tokenizer": "a hub name or a folder; must be the one the data was converted with",
        "model": f"{count.total:,} parameters, {count.active:,} active per token",
        "model.top_k": "experts each token passes through",
        "eval_data.max_batches": f"{config.eval_data.max_batches} x {work.tokens_per_step:,} tokens per evaluation",
        "max_duration": f"{work.tokens_per_parameter:.3g} tokens a parameter, "
        f"{work.tokens_per_active_parameter:.3g} an active one; {work.flops:.3g} FLOPs",
        "global_train_batch_size": f"{batch} x {length} = {work.tokens_per_step:,} tokens a step, {work.steps:,} steps",
        "optimizer.lr": f"the peak; the rule gives {rates.lr:.3g}, Moonlight's fit {rates.moonlight:.3g}. "
        "Loss spikes: halve it",
        "optimizer.weight_decay": f"the rule gives {rates.weight_decay:.3g}",
        "scheduler.t_warmup": f"{warmup / work.tokens:.2g} of the run, {warmup / work.tokens_per_step:.0f} steps",
        "scheduler.alpha_f": "the rate ends at this share of its peak",
        "device_train_microbatch_size": "sets the memory a step takes, not the result",
        "activation_checkpointing": "without it a step does not fit the memory",
        "parallelism": "the model is divided among the GPUs: one alone cannot hold it",
        "save_interval": "steps; what is lost at most when the machine dies without warning",
        "keep_every": "and permanently the first at or after each tenth of the run",
        "autoresume": "the same command resumes from the newest checkpoint",
    }
    if config.precision == "amp_bf16":
        found["precision"] = "fp32, with one printed line, where the device has no bf16"
    if beyond := rates.outside:
        found["optimizer"] = f"the rule was not measured at {', '.join(beyond)}"
    return found
