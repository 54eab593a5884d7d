"""Settings that are allowed and rarely meant."""

from __future__ import annotations

from moe.checks.result import Result
from moe.config import Config
from moe.config.checks import check_ranks
from moe.estimate.plan import find_work

TOO_HIGH, TOO_LOW = 5.0, 1 / 20  # times the rule of thumb
FEW_STEPS, HIGHEST_OF_FEW = 1000, 0.032  # the rule is one for thousands of steps; below, docs/learning.md
UNSCALED = 20.0  # optimizer.adjust_lr_fn original wants about 0.02 where match_rms_adamw wants about 0.001


def check_settings(config: Config, *, vocab_size: int, world_size: int) -> list[Result]:
    """Held against the rules of thumb that the yamls name."""
    found = [_learning_rate(config, vocab_size)]
    if faults := check_ranks(config, world_size):
        found.append(Result("ranks", "fail", "; ".join(faults)))
    return found


def _learning_rate(config: Config, vocab_size: int) -> Result:
    """Peak rates against 0.01273 C^-0.0575, C the run's FLOPs (Moonlight, arXiv 2502.16982)."""
    work = find_work(config, vocab_size)
    rule = 0.01273 * work.flops**-0.0575
    few = HIGHEST_OF_FEW if work.steps < FEW_STEPS else 0.0
    optimizer = config.optimizer
    unscaled = optimizer.name == "muon" and optimizer.adjust_lr_fn == "original"
    wanted = {"optimizer.lr": (optimizer.lr, rule * UNSCALED if unscaled else rule)}
    if optimizer.adamw.lr is not None:
        wanted["optimizer.adamw.lr"] = (optimizer.adamw.lr, rule)
    for key, (rate, usual) in wanted.items():
        if not TOO_LOW * usual < rate < max(TOO_HIGH * usual, few):
            return Result(
                "learning rate",
                "warn",
                f"{key} ({rate:g}) is {rate / usual:.3g} times the {usual:.2g} that is usual for a run of this size "
                f"(0.01273 C^-0.0575, Moonlight); use about {usual:.1g}",
            )
    return Result("learning rate", "pass", f"{optimizer.lr:g}; usual for a run of this size: {rule:.2g}")
