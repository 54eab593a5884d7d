"""Clips the global gradient norm, and skips a step whose gradient is not finite.

| metric | meaning |
|---|---|
| `optim/grad_norm` | global L2 norm before clipping |
| `optim/grad_norm_clipped` | after clipping |
| `optim/skipped_steps` | steps skipped so far |

One callback in the place of Composer's GradientClipping, which hides the true norm, and NaNMonitor, which lets an
infinite loss through. A skipped step leaves weights and optimizer state untouched on every rank (the norm is global,
so all agree); schedule and data advance.
"""

from __future__ import annotations

import torch
from composer import Callback, Logger, State

from moe.common.errors import RunFailed
from moe.optim.norms import full_norms, part_norms, total


class TooManySkippedSteps(RunFailed):
    """Training has diverged: no finite gradient for `max_skipped_steps` steps in a row."""


class GradientClipping(Callback):
    def __init__(self, max_norm: float, max_skipped_steps: int, rate: str = "optimizer.lr"):
        self.max_norm = max_norm
        self.max_skipped_steps = max_skipped_steps
        self.rate = rate  # its key, for the message
        self.skipped = 0
        self.in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]

    def after_train_batch(self, state: State, logger: Logger) -> None:
        parameters = [p for p in state.model.parameters() if p.grad is not None]
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = total(full_norms(part_norms(grads), grads))
        value = float(norm)
        if value == value and value != float("inf"):
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_norm, norm)
            self.in_a_row = 0
        else:
            for parameter in parameters:
                parameter.grad = None
            self.skipped += 1
            self.in_a_row += 1
        logger.log_metrics(
            {
                "optim/grad_norm": value,
                "optim/grad_norm_clipped": min(value, self.max_norm),
                "optim/skipped_steps": self.skipped,
            }
        )
        if self.in_a_row >= self.max_skipped_steps:
            raise TooManySkippedSteps(
                f"step {int(state.timestamp.batch) + 1}: the gradient was not finite for {self.in_a_row} steps in a "
                f"row (max_skipped_steps); go back with resume_from=step:N and a lower {self.rate}"
            )
