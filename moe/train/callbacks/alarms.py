"""Feeds moe.train.health.detectors and reports what they find: console, alarms.jsonl, W&B, `alert_command`.

Logs no metrics. A logger, so that it sees what the callbacks of the same step have logged; on rank 0 only.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from composer import Logger, State
from composer.loggers import LoggerDestination

from moe.config.times import Every
from moe.train.checkpointing.history import ALARMS, append
from moe.train.health.alert import run_command, wandb_alert
from moe.train.health.detectors import Alarm, Detectors
from moe.train.stop import StopSignal


class Alarms(LoggerDestination):
    def __init__(
        self,
        folder: Path,
        every: Every,
        *,
        stop: StopSignal,
        run_name: str,
        command: str | None,
        use_wandb: bool,
        rate: str,
        report: Callable[[str], None],
    ):
        self.folder = folder
        self.every = every
        self.stop = stop
        self.run_name = run_name
        self.command = command
        self.use_wandb = use_wandb
        self.report = report
        self.tokens_per_row = every.interval.to_tokens(every.tokens_per_step)
        self.detectors = Detectors(rate)
        self.row: dict[str, Any] = {}
        self.checkpoint_bytes = 0

    def state_dict(self) -> dict[str, Any]:
        return self.detectors.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detectors.load_state_dict(state)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.row.update(metrics)
        if "optim/grad_norm" in metrics:
            self.detectors.gradient.add(metrics["optim/grad_norm"])

    def batch_end(self, state: State, logger: Logger) -> None:
        step = int(state.timestamp.batch)
        if not self.every.due(step):
            return
        row, self.row = self.row, {}
        for alarm in self.detectors.check({**row, **self._around(state, step)}):
            self._tell(alarm, step)

    def _around(self, state: State, step: int) -> dict[str, Any]:
        """What no metric says."""
        self.checkpoint_bytes = self.checkpoint_bytes or checkpoint_bytes(state)
        around: dict[str, Any] = {
            "step": step,
            "total_steps": self.every.total_steps,
            "tokens_per_row": self.tokens_per_row,
            "checkpoint_bytes": self.checkpoint_bytes,
            "time_limit": self.stop.time_limit,
        }
        if self.stop.time_limit is not None:
            around["seconds_left"] = self.stop.time_limit - (time.monotonic() - self.stop.started)
        with suppress(OSError):  # a file system that is away for a moment
            around["disk_free"] = shutil.disk_usage(self.folder).free
        return around

    def _tell(self, alarm: Alarm, step: int) -> None:
        self.report(f"alarm: {alarm.message}\n       fix: {alarm.fix}")
        append(self.folder / ALARMS, {"step": step, "name": alarm.name, "message": alarm.message, "fix": alarm.fix})
        if self.use_wandb:
            wandb_alert(alarm, report=self.report)
        if self.command is not None:
            run_command(self.command, alarm, run_name=self.run_name, step=step, report=self.report)


def checkpoint_bytes(state: State) -> int:
    """What a checkpoint of this state takes, to within a percent: weights, buffers and optimizer state."""
    tensors = [*state.model.parameters(), *state.model.buffers()]
    for kept in state.optimizers[0].state.values():
        tensors += [value for value in kept.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
