"""Notes each evaluation in events.jsonl, and how far the run has come. Logs no metrics.

A logger, so that it sees an evaluation's loss; on rank 0 only.
"""

from __future__ import annotations

import time

from composer import Logger, State
from composer.loggers import LoggerDestination

from moe.train.checkpointing.history import History


class Events(LoggerDestination):
    def __init__(self, history: History):
        self.history = history
        self.losses: dict[str, float] = {}
        self._start = 0.0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.losses.update({name: value for name, value in metrics.items() if name.startswith("metrics/")})

    def batch_end(self, state: State, logger: Logger) -> None:
        self.history.step = int(state.timestamp.batch)

    def eval_start(self, state: State, logger: Logger) -> None:
        self._start = time.monotonic()

    def eval_end(self, state: State, logger: Logger) -> None:
        label = state.dataloader_label
        seconds = round(time.monotonic() - self._start, 3)
        loss = float(self.losses[f"metrics/{label}/loss"])
        self.history.event("evaluation", int(state.timestamp.batch), label=label, loss=loss, seconds=seconds)
