"""The stages in their order. A group's seconds fit into 8 minutes: a rented machine may go at any time.

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
    "kernels": Stage(1, 140),
    "step": Stage(1, 170),
    "train": Stage(2, 270),
    "memory": Stage(2, 120),
    "twin": Stage(2, 90),
    "peers": Stage(3, 190),
    "tune": Stage(3, 90),
    "learn": Stage(3, 200),
}


def function_of(name: str) -> Callable[[Any], None]:
    return getattr(importlib.import_module(f"gpu_stages.{name}"), name)
