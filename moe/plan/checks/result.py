"""One line of the checklist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

State = Literal["pass", "warn", "fail"]
Report = Callable[[str], None]  # says what a check that takes long is doing


class Result(NamedTuple):
    """pass: all is well. warn: the run would start, look at it first. fail: it would not start, or what it trains could
    not be saved or not be exported.

    text: what was found; for warn and fail also the fix.
    """

    name: str
    state: State
    text: str
