"""Settings that are allowed and rarely meant."""

from __future__ import annotations

import dataclasses

from moe.config import Config
from moe.config.checks import check_ranks
from moe.model.families.table import engine_notes, hindrance_of
from moe.plan.checks.result import Result
from moe.plan.estimate import find_work

TOO_HIGH, TOO_LOW = 3.0, 1 / 20  # times the rule of thumb
# The rule is one for thousands of steps. Below, what docs/learning.md measured; there 4 times as much was no worse.
FEW_STEPS, TOO_HIGH_OF_FEW, OF_FEW = 1000, 4.0, {"muon": 0.008, "adamw": 0.004}
UNSCALED = 20.0  # optimizer.adjust_lr_fn original wants about 0.02 where match_rms_adamw wants about 0.001


def check_settings(config: Config, *, vocab_size: int, world_size: int) -> list[Result]:
    """Held against the rules of thumb that the yamls name."""
    found = [_learning_rate(config, vocab_size)]
    model = dataclasses.asdict(config.model)
    if hindrance := hindrance_of(model):
        found.append(Result("export", "fail", f"{hindrance}; only this project would run what is trained"))
    elif notes := engine_notes(model):
        found.append(Result("export", "warn", "; ".join(notes)))
    if faults := check_ranks(config, world_size):
        found.append(Result("ranks", "fail", "; ".join(faults)))
    return found


def _learning_rate(config: Config, vocab_size: int) -> Result:
    """Peak rates against 0.01273 C^-0.0575, C the run's FLOPs (Moonlight, arXiv 2502.16982), or what few steps want."""
    work, optimizer = find_work(config, vocab_size), config.optimizer
    rule, highest, source = 0.01273 * work.flops**-0.0575, TOO_HIGH, "0.01273 C^-0.0575, Moonlight"
    if work.steps < FEW_STEPS:
        highest, source = TOO_HIGH_OF_FEW, f"under {FEW_STEPS:,} steps: docs/learning.md"
        rule = max(rule, OF_FEW[optimizer.name])
    unscaled = optimizer.name == "muon" and optimizer.adjust_lr_fn == "original"
    wanted = {"optimizer.lr": (optimizer.lr, rule * UNSCALED if unscaled else rule)}
    if optimizer.adamw.lr is not None:
        wanted["optimizer.adamw.lr"] = (optimizer.adamw.lr, rule)
    for key, (rate, usual) in wanted.items():
        if not TOO_LOW * usual < rate < highest * usual:
            return Result(
                "learning rate",
                "warn",
                f"{key} ({rate:g}) is {rate / usual:.3g} times the {usual:.2g} that is usual for a run of this size "
                f"({source}); use about {usual:.1g}",
            )
    usual = wanted["optimizer.lr"][1]
    return Result("learning rate", "pass", f"{optimizer.lr:g}; usual for a run of this size: {usual:.2g}")
