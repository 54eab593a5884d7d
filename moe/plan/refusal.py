"""Why a run that `moe new` was asked for cannot be, and what could: each change that is named was found to fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from moe.common.errors import InputError
from moe.common.units import clock, short, size
from moe.config import Config
from moe.config.steps import Steps
from moe.plan.counts import exactly, read_count
from moe.plan.estimate import parameters
from moe.plan.gpus import GPUS
from moe.plan.new import MOST_GPUS, MOST_HOURS, Wanted, make
from moe.plan.sizing import Fit, sizes


def refusal(wanted: Wanted, other: Wanted, config: Config, fit: Fit) -> str:
    """What does not fit, and what would: a smaller size, more hours, more or other GPUs, or two of these.

    other: what is wanted where `--params` stands in the place of `--like`. config, fit: what `make` gave for `wanted`.
    """
    count, tokens = parameters(config, wanted.vocab_size).total, Steps.of(config).tokens
    smallest = wanted.shape_free and not (wanted.params or wanted.active)
    cards = f"{wanted.n_gpus} x {wanted.gpu.name}"
    if fit.microbatch:
        text = f"takes {clock(fit.seconds)} on {cards}, more than --hours {wanted.hours:g}"
    else:
        text = f"needs {size(fit.memory)} on {cards}, which has {size(wanted.gpu.memory)}"
    would = [] if smallest else [*_smaller(wanted, other, config)]
    alone = [*_hours(fit), *_gpus(wanted, config), *_another_gpu(wanted)]
    would += alone or [*_two(wanted, config)]
    end = f"it would with {', or '.join(would)}" if would else "no other hours, GPUs or size that were tried are enough"
    what = f"{short(count)} parameters" + ", the smallest shape," * smallest
    return f"a run of {what} on {short(tokens)} tokens {text}; {end}"


def _fit(wanted: Wanted) -> Fit | None:
    """None where it does not fit, or cannot be at all."""
    try:
        _, fit = make(wanted)
    except InputError:
        return None
    return fit if wanted.met(fit) else None


def _smaller(wanted: Wanted, other: Wanted, config: Config) -> Iterator[str]:
    """The largest size that fits, as it can be typed."""
    tokens, instead = "", ""
    if not wanted.shape_free:
        if (other.like.tokenizer, other.like.max_seq_len) != (wanted.like.tokenizer, wanted.like.max_seq_len):
            return  # it would be a run on other data
        instead = " in the place of --like"
        if wanted.tokens is None:
            total = Steps.of(config).tokens
            other, tokens = replace(other, tokens=total), f"--tokens {exactly(total)} "
    elif wanted.active:
        instead = " in the place of --active"
    for count in sizes(parameters(config, wanted.vocab_size).total):
        text = short(count)
        asked = replace(other, params=read_count("--params", text), active=None, shape_free=True)
        if _fit(asked):
            yield f"{tokens}--params {text}{instead}"
            return


def _hours(fit: Fit) -> Iterator[str]:
    hours = math.ceil(fit.seconds / 3600)
    if fit.microbatch and hours <= MOST_HOURS:
        yield f"--hours {hours}"


def _numbers(wanted: Wanted, config: Config) -> Iterator[int]:
    """Powers of two above the number of GPUs that divide the batch."""
    for n_gpus in (1 << i for i in range(1, MOST_GPUS.bit_length())):
        if n_gpus > wanted.n_gpus and config.global_train_batch_size % n_gpus == 0:
            yield n_gpus


def _gpus(wanted: Wanted, config: Config) -> Iterator[str]:
    for n_gpus in _numbers(wanted, config):
        if _fit(replace(wanted, n_gpus=n_gpus)):
            yield f"--gpus {n_gpus}"
            return


def _another_gpu(wanted: Wanted) -> Iterator[str]:
    for gpu in GPUS:
        if _fit(replace(wanted, gpu=gpu)):
            yield f"--gpu '{gpu.name}'{_instead_of_own(wanted)}"
            return


def _two(wanted: Wanted, config: Config) -> Iterator[str]:
    """More GPUs with the hours that they take; else more GPUs of another kind, with theirs."""
    for gpu in (wanted.gpu, *GPUS):
        for n_gpus in (wanted.n_gpus, *_numbers(wanted, config)):
            fit = _fit(replace(wanted, gpu=gpu, n_gpus=n_gpus, hours=None))
            found = [] if fit is None else [*_hours(fit)]
            if found:
                kind = "" if gpu == wanted.gpu else f"--gpu '{gpu.name}' "
                hours = f" {found[0]}" * (wanted.hours is not None)
                yield f"{kind}--gpus {n_gpus}{hours}{_instead_of_own(wanted) if kind else ''}"
                return


def _instead_of_own(wanted: Wanted) -> str:
    return "" if wanted.gpu in GPUS else " in the place of --gpu-memory and --gpu-tflops"
