"""`auto`: the word of a setting that is a number by a rule (moe/optim/auto.py puts it there)."""

from __future__ import annotations

from typing import Literal

AUTO: Literal["auto"] = "auto"


def number(value: float | Literal["auto"]) -> float:
    """A setting of a config in which no `auto` is left."""
    assert not isinstance(value, str)
    return value
