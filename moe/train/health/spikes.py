"""Counts loss spikes without waiting for the device.

A spike is a loss above the mean of the last WINDOW steps by more than SIGMA of their standard deviations, after the
spike score of OLMo 2 (arXiv 2501.00656). Losses that are not finite are no part of the window: their steps are skipped
and counted elsewhere.
"""

from __future__ import annotations

import torch

WINDOW, SIGMA = 128, 6.0


class SpikeCounter:
    """State: the last losses (fp64 [WINDOW], a ring), how many there were and how many of them were spikes (int64)."""

    def __init__(self) -> None:
        self.state = {
            "losses": torch.zeros(WINDOW, dtype=torch.float64),
            "seen": torch.zeros(1, dtype=torch.int64),
            "spikes": torch.zeros(1, dtype=torch.int64),
        }

    def add(self, loss: torch.Tensor) -> None:
        """`loss`: a scalar. Nothing is a spike before the window is full."""
        self.state = {name: value.to(loss.device) for name, value in self.state.items()}
        losses, seen, spikes = self.state.values()
        deviation, mean = torch.std_mean(losses)
        finite = torch.isfinite(loss)
        spikes += finite & (seen >= WINDOW) & (loss > mean + SIGMA * deviation)
        place = seen % WINDOW
        losses.scatter_(0, place, torch.where(finite, loss.double(), losses.gather(0, place)))
        seen += finite

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.state = state
