"""A yaml for a run of so many tokens: what is wanted becomes settings, each with the number it came from.

- Begins with a yaml of ours (`like`; else 500m, whose shape is then chosen). Its own number of tokens gives its own
  settings again; with another one batch, rate, warmup, decay and intervals follow (scaling.py).
- What does not fit is refused with what would (refusal.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moe.common.errors import InputError
from moe.common.units import short
from moe.config import Config, ModelConfig, parse_time
from moe.config.steps import Steps
from moe.plan.estimate import find_rates, find_work, parameters
from moe.plan.gpus import Gpu
from moe.plan.scaling import NEAR, batch_by_law, for_tokens, with_rates
from moe.plan.sizing import SMALLEST, TOKENS_PER_PARAMETER, Fit, find_fit, largest, shape_for

MOST_GPUS, MOST_HOURS = 4096, 24 * 366 * 10
MOST_MISSED = 0.1  # of the number of parameters that was asked for


@dataclass(frozen=True)
class Wanted:
    """What a run is to be. like: the yaml it begins with; tokens None: that one's. shape_free: the shape is to be
    chosen, of about `params` or `active` parameters, or as large as fits. hours: the most it may take.
    """

    like: Config
    vocab_size: int
    tokens: int | None
    gpu: Gpu
    n_gpus: int = 1
    params: int | None = None
    active: int | None = None
    hours: float | None = None
    shape_free: bool = True

    @property
    def seconds(self) -> float | None:
        return None if self.hours is None else self.hours * 3600

    def met(self, fit: Fit) -> bool:
        return bool(fit.microbatch) and (self.seconds is None or fit.seconds <= self.seconds)


def make(wanted: Wanted) -> tuple[Config, Fit]:
    """The run's config, and how it fits, which may be not at all (`Wanted.met`): then of the size that was asked for,
    else the smallest.

    Raises:
        InputError: no shape is near the size that was asked for, or the tokens are too few.
    """
    base = for_tokens(wanted.like, wanted.tokens, wanted.n_gpus)
    vocab_size = wanted.vocab_size

    def build(count: int, active: bool = False) -> Config:
        model = finer(base.model) if active else base.model
        return replace(base, model=shape_for(model, vocab_size, count, active=active))

    if not wanted.shape_free:
        config = base
    elif asked := wanted.params or wanted.active:
        config = with_rates(build(asked, active=wanted.params is None))
        _check_met(config, asked, wanted)
    else:
        most = max(SMALLEST, find_work(base, vocab_size).tokens / TOKENS_PER_PARAMETER)
        found = largest(build, vocab_size, wanted.gpu, wanted.n_gpus, most=most, seconds=wanted.seconds)
        config = with_rates(found or build(SMALLEST))
    fit = find_fit(config, vocab_size, wanted.gpu, wanted.n_gpus)
    parallelism = replace(config.parallelism, fsdp2=config.parallelism.fsdp2 or fit.sharded)
    return replace(config, activation_checkpointing=fit.checkpointing, parallelism=parallelism), fit


def finer(model: ModelConfig) -> ModelConfig:
    """With the experts that stages B and C of docs/learning.md chose, where the number of all parameters is free."""
    return replace(model, n_experts=32, top_k=4)


def _check_met(config: Config, asked: int, wanted: Wanted) -> None:
    count = parameters(config, wanted.vocab_size)
    flag, found = ("--params", count.total) if wanted.params else ("--active", count.active)
    if abs(found / asked - 1) > MOST_MISSED:
        raise InputError(f"{flag} ({short(asked)}): the nearest shape has {short(found)}; ask for about that")


def notes(config: Config, wanted: Wanted) -> dict[str, str]:
    """Where each number came from, by its key."""
    vocab_size = wanted.vocab_size
    work, rates, count = find_work(config, vocab_size), find_rates(config, vocab_size), parameters(config, vocab_size)
    law = round(batch_by_law(wanted.like, Steps.of(config).tokens))
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
        "global_train_batch_size": f"{batch} x {length} = {work.tokens_per_step:,} tokens a step, {work.steps:,} steps"
        + (f"; {wanted.n_gpus} GPUs divide it, the law gives {law}" if abs(batch / law - 1) > NEAR else ""),
        "optimizer.lr": f"the peak; the rule gives {rates.lr:.3g}, Moonlight's fit {rates.moonlight:.3g}. "
        "Loss spikes: halve it",
        "optimizer.weight_decay": f"the rule gives {rates.weight_decay:.3g}",
        "scheduler.t_warmup": f"{warmup / work.tokens:.2g} of the run, {warmup / work.tokens_per_step:.0f} steps",
        "scheduler.alpha_f": "the rate ends at this share of its peak",
        "device_train_microbatch_size": "sets the memory a step takes, not the result",
        "activation_checkpointing": "blocks are computed again in the backward pass: less memory, a third more time",
        "parallelism": "the model is divided among the GPUs",
        "eval_first": "so short a run is only evaluated at its end: a batch more would be more than a tenth of it",
        "save_interval": "steps; what is lost at most when the machine dies without warning",
        "autoresume": "the same command resumes from the newest checkpoint",
    }
    if config.keep_every is not None:
        found["keep_every"] = "and permanently the first at or after each tenth of the run"
    if config.precision == "amp_bf16":
        found["precision"] = "fp32, with one printed line, where the device has no bf16"
    if beyond := rates.outside:
        found["optimizer"] = f"the rule was not measured at {', '.join(beyond)}"
    return found
