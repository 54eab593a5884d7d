"""What settings, estimate, export and advice know of each rule that loads experts evenly. The rules themselves are the
classes of the same names in moe/model/balance.py; a further one is a row here and a class there.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

FEW_STEPS = 1000

BalanceName = Literal["loss", "sign", "quantile"]


class BalanceRule(NamedTuple):
    """moves_bias: routers have an expert bias, which the rule sets. loss: `model.balance_loss` where that is null.
    rates: `model.balance_rate` where that is null, and in runs of fewer than FEW_STEPS; None: the rule takes no rate.
    bins: of a histogram for each expert, of what its scores lacked (`RouterStats.needed_EB`); 0 for none.
    """

    moves_bias: bool = True
    loss: float = 0.0
    rates: tuple[float, float] | None = None
    bins: int = 0


BALANCE_RULES: dict[BalanceName, BalanceRule] = {
    "loss": BalanceRule(moves_bias=False, loss=0.01),
    # 0.001, DeepSeek-V3's, takes hundreds of steps: docs/training.md, Balance
    "sign": BalanceRule(rates=(0.001, 0.01)),
    "quantile": BalanceRule(bins=1000),
}
WITH_RATE = " or ".join(name for name, rule in BALANCE_RULES.items() if rule.rates)
WITH_BIAS = tuple(name for name, rule in BALANCE_RULES.items() if rule.moves_bias)
WITHOUT_BIAS = tuple(name for name, rule in BALANCE_RULES.items() if not rule.moves_bias)
