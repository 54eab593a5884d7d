"""Settings that are allowed and rarely meant."""

from __future__ import annotations

import dataclasses

from moe.config import Config
from moe.config.auto import number
from moe.config.checks import check_ranks
from moe.model.families.table import engine_notes, hindrance_of
from moe.optim.rates import main_rate
from moe.plan.checks.result import Result
from moe.plan.estimate import find_rates, find_work

TOO_HIGH, TOO_LOW = 3.0, 1 / 20  # times the rule
FEW_STEPS, TOO_HIGH_OF_FEW = 1000, 4.0  # in few steps 4 times the best rate was no worse (docs/learning-older.md)
UNSCALED = 20.0  # optimizer.adjust_lr_fn original wants about 0.02 where match_rms_adamw wants about 0.001


def check_settings(config: Config, *, vocab_size: int, world_size: int) -> list[Result]:
    """Held against the rules of thumb that the yamls name."""
    found = [_learning_rate(config, vocab_size)]
    model = dataclasses.asdict(config.model)
    if hindrance := hindrance_of(model):
        found.append(Result("export", "fail", f"{hindrance}; only this project would run what is trained"))
    elif notes := engine_notes(model):
        found.append(Result("export", "warn", "; ".join(notes)))
    if errors := check_ranks(config, world_size):
        found.append(Result("ranks", "fail", "; ".join(errors)))
    return found


def _learning_rate(config: Config, vocab_size: int) -> Result:
    """Peak rates against the rule (moe/optim/rule.py)."""
    optimizer, rule = config.optimizer, find_rates(config, vocab_size).lr
    highest = TOO_HIGH_OF_FEW if find_work(config, vocab_size).steps < FEW_STEPS else TOO_HIGH
    main, own = main_rate(dataclasses.asdict(optimizer)), optimizer.adamw.lr
    unused = optimizer.name == "adamw" and own is not None
    unscaled = optimizer.name == "muon" and optimizer.adjust_lr_fn == "original"
    peaks = [("optimizer.adamw.lr" if unused else "optimizer.lr", main, rule * UNSCALED if unscaled else rule)]
    if own is not None and not unused:
        peaks.append(("optimizer.adamw.lr", number(own), rule))
    for key, rate, usual in peaks:
        if not TOO_LOW * usual < rate < highest * usual:
            return Result(
                "learning rate",
                "warn",
                f"{key} ({rate:g}) is {rate / usual:.3g} times the {usual:.2g} that is usual for a run of this size "
                f"(the rule for its width, tokens and batch: docs/learning.md); use about {usual:.1g}, or auto",
            )
    which = " (optimizer.adamw.lr; optimizer.lr is not used)" if unused else ""
    return Result("learning rate", "pass", f"{main:g}{which}; usual for a run of this size: {peaks[0][2]:.2g}")
