"""Sets the learning rate of each step from the schedule.

| metric | meaning |
|---|---|
| `optim/lr/{group}` | learning rate applied in this step |

Composer's schedulers run before its clock moves on, so their rate lags one batch, and a checkpoint brings back the
rates and decays it was saved with. Here the rate is a function of the position alone, and the hyperparameters are the
config's, also after a resume with a changed config.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from composer import Callback, Logger, State

from moe.config.times import Time


class LearningRate(Callback):
    """`factor(done)` gives the share of each group's base rate; `done` is counted at the end of the step, in
    `total`'s unit.

    Args:
        groups: what each parameter group must hold whatever a checkpoint says: name, lr, weight_decay, ...
    """

    def __init__(
        self,
        factor: Callable[[int], float],
        *,
        total: Time,
        tokens_per_step: int,
        groups: Sequence[dict[str, Any]],
    ):
        self.factor = factor
        self.total = total
        self.tokens_per_step = tokens_per_step
        self.groups = [{key: value for key, value in group.items() if key != "params"} for group in groups]

    def after_load(self, state: State, logger: Logger) -> None:
        for group, wanted in zip(state.optimizers[0].param_groups, self.groups, strict=True):
            group.update(wanted)

    def batch_start(self, state: State, logger: Logger) -> None:
        step = int(state.timestamp.batch) + 1
        done = step if self.total.unit == "ba" else step * self.tokens_per_step
        factor = self.factor(min(done, self.total.value))
        for group, wanted in zip(state.optimizers[0].param_groups, self.groups, strict=True):
            group["lr"] = wanted["lr"] * factor
        logger.log_metrics({f"optim/lr/{group['name']}": group["lr"] for group in state.optimizers[0].param_groups})
