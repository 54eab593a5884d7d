"""The stages in their order. A group's seconds fit into 8 minutes: a rented machine may go at any time.

- `seconds` are kept for a stage while those before it run. What these leave it has, too: alone a stage has all 8
  minutes, and one that was too slow beside others can be done alone. Last in a group stands what can use more.
- The seconds are what an H200 of 16 cores took, with a share more: its caches were cold.

A stage is imported where it runs, in a process of its own; here stand only names and seconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

GROUP_SECONDS = 480


class Stage(NamedTuple):
    group: int
    seconds: int


STAGES = {
    "machine": Stage(1, 20),
    "smoke": Stage(1, 150),
    "kernels": Stage(1, 135),
    "step": Stage(1, 170),
    "memory": Stage(2, 110),
    "twin": Stage(2, 100),
    "resume": Stage(2, 160),
    "train": Stage(2, 105),
    "peers": Stage(3, 210),
    "tune": Stage(3, 50),
    "profile": Stage(3, 70),
    "learn": Stage(3, 145),
}


def limit_of(name: str, later: list[str], left: float) -> float:
    """Seconds that a stage may take, where `left` are its group's: all that the group's later stages do not need."""
    group = STAGES[name].group
    return left - sum(STAGES[other].seconds for other in later if STAGES[other].group == group)


def function_of(name: str) -> Callable[[Any], None]:
    return getattr(importlib.import_module(f"gpu_stages.{name}"), name)
