"""Durations and intervals as Composer writes them: `10000000000tok` or `1000ba` (batches, that is optimizer steps).

Parsed in the config already: Composer accepts `500` or `'500'` for an interval and fails, or means epochs, much later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

UNITS = {"tok": "tokens", "ba": "batches"}
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MOST_DIGITS = 18  # what 64 bits hold
MOST_SECONDS = 36_500 * 86400  # timers of Python take 290 years


@dataclass(frozen=True)
class Time:
    """A count of tokens (`unit == "tok"`) or of batches (`unit == "ba"`)."""

    value: int
    unit: str

    def __str__(self) -> str:
        return f"{self.value}{self.unit}"

    def to_steps(self, tokens_per_step: int) -> int:
        """Optimizer steps that cover this much: the last one may go beyond it by part of a step."""
        return self.value if self.unit == "ba" else -(-self.value // tokens_per_step)

    def to_tokens(self, tokens_per_step: int) -> int:
        """Tokens after `to_steps` steps, for batches; the value itself for tokens."""
        return self.value if self.unit == "tok" else self.value * tokens_per_step

    def in_unit(self, unit: str, tokens_per_step: int) -> int:
        """This much in tokens (`tok`) or in steps (`ba`)."""
        return self.to_tokens(tokens_per_step) if unit == "tok" else self.to_steps(tokens_per_step)

    def crossed(self, step: int, tokens_per_step: int) -> bool:
        """Whether the step that ends at count `step` reaches a multiple of this interval."""
        if self.unit == "ba":
            return step % self.value == 0
        return (step * tokens_per_step) // self.value > ((step - 1) * tokens_per_step) // self.value


@dataclass(frozen=True)
class Every:
    """Tells at which steps something is due: at each multiple of an interval, and at the run's last step."""

    interval: Time
    tokens_per_step: int
    total_steps: int

    @property
    def times(self) -> int:
        """How often over the run."""
        total = self.total_steps if self.interval.unit == "ba" else self.total_steps * self.tokens_per_step
        reached = min(total // self.interval.value, self.total_steps)  # a step reaches several multiples at once
        return reached if self.interval.crossed(self.total_steps, self.tokens_per_step) else reached + 1

    def due(self, step: int) -> bool:
        """Whether it is due at the end of the step that makes the count `step`."""
        return step >= self.total_steps or self.interval.crossed(step, self.tokens_per_step)


def parse_time(text: str, zero: bool = False) -> Time:
    """`"1000ba"` -> Time(1000, "ba"). Underscores may group digits; `zero` allows 0.

    Raises:
        ValueError: not a positive integer of at most 18 digits followed by `tok` or `ba`.
    """
    match = re.fullmatch(r"([0-9][0-9_]*)(tok|ba)", str(text).strip())
    digits = match[1].replace("_", "") if match else ""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"has more than {MOST_DIGITS} digits; no run is that long, write it as 10000000000tok")
    if match is not None and not zero and int(digits) == 0:
        raise ValueError("must be above 0")
    if match is None:
        raise ValueError("is not a duration; write tokens as 100000000tok or batches (steps) as 1000ba")
    return Time(int(digits), match[2])


def parse_seconds(text: str) -> int:
    """`"30m"` -> 1800. Wall-clock time in s, m, h or d.

    Raises:
        ValueError: not a positive integer followed by one of these, or more than 100 years.
    """
    match = re.fullmatch(r"([0-9]+)([smhd])", str(text).strip())
    long = match is not None and len(match[1]) > MOST_DIGITS
    if match is None or (not long and not int(match[1])):
        raise ValueError("is not a wall-clock time; write it as 90s, 30m, 12h or 2d")
    if long or int(match[1]) * SECONDS[match[2]] > MOST_SECONDS:
        raise ValueError("is longer than 100 years; write it as 90s, 30m, 12h or 2d")
    return int(match[1]) * SECONDS[match[2]]
