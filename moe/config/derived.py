"""What follows from several settings: those that are null in the yaml, a value that has two names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moe.config.balance import BALANCE_RULES, FEW_STEPS
from moe.config.steps import Steps

if TYPE_CHECKING:
    from moe.config.schema import Config


def with_derived(config: Config) -> Config:
    """The same with numbers in the place of null, and head for qk_norm: true. Settings must be valid."""
    model = config.model
    weight, rate, rule = model.balance_loss, model.balance_rate, BALANCE_RULES[model.balance]
    if weight is None:
        weight = rule.loss
    if rate is None and rule.rates:
        rate = rule.rates[Steps.of(config).total < FEW_STEPS]
    norm = "head" if model.qk_norm is True else model.qk_norm
    return replace(config, model=replace(model, balance_loss=weight, balance_rate=rate, qk_norm=norm))


def reads_converted(config: Config) -> bool:
    """Whether any of its data were converted, and are not text that is tokenised as it is read."""
    return any(data is not None and not data.text for data in (config.train_data, config.eval_data))
