"""How the ranks of a run share an evaluation: each takes its part of the work, all get all of the result.

Decisions:
- All ranks take as many turns: a sharded model needs every rank in each forward pass, and a request to stop is agreed
  on between two turns.
- An error on one rank is raised on all of them after the last turn, so that none waits for another. But a rank of a
  sharded model that fails within a forward pass leaves the others waiting there: time-outs end such a run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.distributed.fsdp import FSDPModule


class ScoringStopped(BaseException):
    """The evaluation was asked to stop between two requests. No Exception: nothing on the way takes it for an error."""


class ScoringFailed(RuntimeError):
    """A task cannot be scored with this model. The message says why."""


class Ranks:
    """Args:
    model: what is evaluated.
    between: called after each turn, and now and then while questions are made, on all ranks alike; true ends the
        evaluation.
    """

    def __init__(self, model: nn.Module, between: Callable[[], bool] = lambda: False) -> None:
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.world_size = torch.distributed.get_world_size() if grouped else 1
        self.rank = torch.distributed.get_rank() if grouped else 0
        self.needs_all = isinstance(model, FSDPModule)
        self.between = between

    def turn_ended(self) -> None:
        """Raises ScoringStopped where any rank is asked to stop."""
        if self.between():
            raise ScoringStopped

    def any(self, mine: bool) -> bool:
        """Whether it is so on any rank."""
        return mine if self.world_size == 1 else any(self.gather(mine))

    def gather(self, mine: Any) -> list[Any]:
        """Of every rank, by rank."""
        if self.world_size == 1:
            return [mine]
        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, mine)
        return found

    def results(self, mine: Any, error: Exception | None) -> list[Any]:
        """What every rank has found, where none of them failed.

        Raises:
            ScoringFailed: on every rank, where torch failed on one, as for want of memory. Other errors of a rank that
                is alone stay what they are.
        """
        if self.world_size == 1 and error is not None and not isinstance(error, (RuntimeError, MemoryError)):
            raise error
        cause = None if error is None else f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        gathered = self.gather((cause, mine))
        for rank, (cause, _) in enumerate(gathered):
            if cause is not None:
                raise ScoringFailed(f"rank {rank}: {cause}" if self.world_size > 1 else cause) from error
        return [result for _, result in gathered]
