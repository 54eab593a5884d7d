"""How evenly the router loads the experts: counted at every step, without waiting for the device.

An expert's load is the assignments it got over its fair share, which is the mean over its layer's experts. Below IDLE
of that it learns next to nothing.

L layers, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

IDLE = 0.01


class ExpertLoad:
    """State: assignments since the last row of metrics, and for how many steps each expert has been idle (int64)."""

    def __init__(self, n_layers: int, n_experts: int) -> None:
        shape = (n_layers, n_experts)
        self.counts_LE = torch.zeros(shape, dtype=torch.int64)
        self.idle_LE = torch.zeros(shape, dtype=torch.int64)

    def add(self, counts_LE: Tensor) -> None:
        """One step's assignments, of the global batch."""
        self.counts_LE = self.counts_LE.to(counts_LE.device) + counts_LE.long()
        idle_LE = load(counts_LE) < IDLE
        self.idle_LE = torch.where(idle_LE, self.idle_LE.to(counts_LE.device) + 1, 0)

    def interval(self) -> dict[str, Tensor]:
        """Per layer, since the last call: `max_vio` (arXiv 2408.15664) and `dead` experts; `idle_steps` of the expert
        that has been idle longest; and each expert's load [L, E].
        """
        load_LE = load(self.counts_LE)
        self.counts_LE = torch.zeros_like(self.counts_LE)
        return {
            "max_vio": load_LE.amax(1) - 1,
            "dead": (load_LE < IDLE).sum(1),
            "idle_steps": self.idle_LE.amax(1),
            "load": load_LE,
        }

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts_LE": self.counts_LE, "idle_LE": self.idle_LE}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.counts_LE, self.idle_LE = state["counts_LE"], state["idle_LE"]


def load(counts_LE: Tensor) -> Tensor:
    """Assignments over the fair share, fp64."""
    return counts_LE.double() / counts_LE.double().mean(1, keepdim=True)
