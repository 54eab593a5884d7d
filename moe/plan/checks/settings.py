"""Settings that are allowed and rarely meant."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from moe.config import Config, OptimizerConfig
from moe.config.auto import number
from moe.config.checks import check_ranks
from moe.config.schedule import is_unscaled
from moe.config.shape import router_learns
from moe.model.families.table import engine_notes, hindrance_of
from moe.plan.checks.result import Result
from moe.plan.estimate import find_rates, find_work

TOO_HIGH, TOO_LOW = 3.0, 1 / 20  # times the rule
FEW_STEPS, TOO_HIGH_OF_FEW = 1000, 4.0  # in few steps 4 times the best rate was no worse (docs/learning-older.md)


def check_settings(config: Config, *, vocab_size: int, world_size: int) -> list[Result]:
    """Held against the rules of thumb that the yamls name."""
    found = [_learning_rate(config, vocab_size)]
    model = dataclasses.asdict(config.model)
    if hindrance := hindrance_of(model):
        found.append(Result("export", "fail", f"{hindrance}; only this project would run what is trained"))
    elif notes := engine_notes(model):
        found.append(Result("export", "warn", "; ".join(notes)))
    chosen = {name: model[name] for name in ("n_experts", "top_k", "norm_topk_prob")}
    if not router_learns(**chosen):
        constant = "the weight of a token's one expert is always 1, so that the loss teaches the router nothing"
        fix = "set model.norm_topk_prob=false in a new run"
        found.append(Result("router", "warn", f"model.top_k (1) with model.norm_topk_prob (true): {constant}; {fix}"))
    if errors := check_ranks(config, world_size):
        found.append(Result("ranks", "fail", "; ".join(errors)))
    return found


def _learning_rate(config: Config, vocab_size: int) -> Result:
    """Peak rates against the rule (moe/optim/rule.py)."""
    rule, peaks = find_rates(config, vocab_size), _peaks(config.optimizer)
    highest = TOO_HIGH_OF_FEW if find_work(config, vocab_size).steps < FEW_STEPS else TOO_HIGH
    for peak in peaks:
        usual = rule.lr if peak is peaks[0] else rule.adamw_lr
        if not TOO_LOW * usual < peak.rate < highest * usual:
            return Result(
                "learning rate",
                "warn",
                f"{peak.key} ({peak.shown}) is {peak.rate / usual:.3g} times the {usual:.2g} that is usual for a run "
                "of this size (the rule for its width, tokens and batch: docs/learning.md); "
                f"use about {usual:.1g}{peak.auto}",
            )
    main = peaks[0]
    which = "" if main.key == "optimizer.lr" else f" ({main.key}; optimizer.lr is not used)"
    return Result("learning rate", "pass", f"{main.shown}{which}; usual for a run of this size: {rule.lr:.2g}")


class _Peak(NamedTuple):
    """A peak rate. auto: what to say of the word, where it gives the rule's rate."""

    key: str
    rate: float
    shown: str
    auto: str = ", or auto"


def _peaks(optimizer: OptimizerConfig) -> list[_Peak]:
    """The rate of the matrices, then that of AdamW's groups where it may be another one."""
    lr, own, unscaled = number(optimizer.lr), optimizer.adamw.lr, is_unscaled(optimizer)
    if optimizer.name == "adamw" and own is not None:
        return [_Peak("optimizer.adamw.lr", number(own), f"{own:g}", ", or optimizer.lr=auto without it")]
    peaks = [_Peak("optimizer.lr", lr, f"{lr:g}", "" if unscaled else ", or auto")]
    if own is not None:
        peaks.append(_Peak("optimizer.adamw.lr", number(own), f"{own:g}"))
    elif unscaled:
        peaks.append(_Peak("optimizer.adamw.lr", lr, f"null: optimizer.lr, {lr:g}"))
    return peaks
