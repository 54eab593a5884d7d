"""Settings that are null in the yaml and follow from others, and a value that has two names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moe.config.steps import Steps

if TYPE_CHECKING:
    from moe.config.schema import Config

BALANCE_LOSS = 0.01
# Of 32 experts, top 8, in 190 steps: loads of 0.92 to 1.08 of the fair share with 0.01; 0.001, which DeepSeek-V3 has,
# takes hundreds of steps to get there.
SIGN_RATE, SIGN_RATE_OF_FEW, FEW_STEPS = 0.001, 0.01, 1000


def with_derived(config: Config) -> Config:
    """The same with numbers in the place of null, and head for qk_norm: true. Settings must be valid."""
    model = config.model
    weight, rate = model.balance_loss, model.balance_rate
    if weight is None:
        weight = BALANCE_LOSS if model.balance == "loss" else 0.0
    if rate is None and model.balance == "sign":
        steps = Steps.of(config).total
        rate = SIGN_RATE if steps >= FEW_STEPS else SIGN_RATE_OF_FEW
    norm = "head" if model.qk_norm is True else model.qk_norm
    return replace(config, model=replace(model, balance_loss=weight, balance_rate=rate, qk_norm=norm))
