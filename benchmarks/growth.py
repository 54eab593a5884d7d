"""Does a process grow while a run goes on? Least squares over looks at it, with their error, for benchmarks/soak.py.

Decisions:
- Level: the slope is below its limit by ERRORS standard errors. Growing: it is at the limit or above, and above nothing
  by as many. Between the two the run was too short to say, which is reported and does not count as level.
- Looks that follow each other are alike (an allocator takes memory in steps), so a series is averaged in PARTS
  stretches first; else its error would come out far too small.
- Of many processes of one kind, such as the loader workers of each epoch: each by itself, for one may grow among many;
  all together, each about its own mean, for a life is short; and whether each is larger than those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ERRORS, PARTS, LEAST = 4.0, 20, 6  # LEAST: stretches that a slope is taken of
WARM = 5  # a process takes what it needs in the first fifth of its life
LEVEL, GROWS, UNKNOWN = "yes", "no", "too short to say"
Series = tuple[np.ndarray, np.ndarray]  # steps, ascending, and a value at each


@dataclass(frozen=True)
class Slope:
    """In 1,000 steps, with its standard error; infinite where there is too little to say."""

    value: float
    error: float

    def level(self, limit: float) -> str:
        if self.value + ERRORS * self.error < limit:
            return LEVEL
        return GROWS if self.value >= limit and self.value > ERRORS * self.error else UNKNOWN

    def __str__(self) -> str:
        return "-" if self.error == float("inf") else f"{self.value:+.3f} ± {self.error:.3f}"


NOTHING = Slope(0.0, float("inf"))


def slope(several: Sequence[Series]) -> Slope:
    """Common to `several`, each about its own mean."""
    parts = [averaged(one) for one in several]
    parts = [part for part in parts if len(part[0]) >= LEAST]
    if not parts:
        return NOTHING
    x = np.concatenate([steps - steps.mean() for steps, _ in parts]) / 1e3
    y = np.concatenate([values - values.mean() for _, values in parts])
    spread = float(x @ x)
    value = float(x @ y) / spread
    freedom = len(x) - len(parts) - 1
    return Slope(value, float(np.sqrt(((y - value * x) ** 2).sum() / freedom / spread)))


def averaged(one: Series) -> Series:
    """At most PARTS stretches, of steps that differ."""
    steps, values = one
    groups = np.array_split(np.arange(len(steps)), min(PARTS, len(steps)))
    x = np.array([steps[group].mean() for group in groups])
    return (x, np.array([values[group].mean() for group in groups])) if np.ptp(x) > 0 else (x[:0], x[:0])


def warm(one: Series) -> Series:
    """Without the first fifth of its steps, and without the last look, which may have met it as it ended."""
    steps, values = one
    if not len(steps):
        return one
    kept = steps >= steps[0] + (steps[-1] - steps[0]) / WARM
    return steps[kept][:-1], values[kept][:-1]


@dataclass(frozen=True)
class Growth:
    """Of the processes of one kind, in all and each by itself.

    Attributes:
        together: how a process grows in its life, on average.
        steepest: of the process that grows most; of one that does so surely, where one does.
        successive: of the means of processes, the earliest first: whether those that came later are larger.
    """

    processes: int
    first: float
    last: float
    most: float
    together: Slope
    steepest: Slope
    successive: Slope

    def level(self, limit: float) -> str:
        """Of one process its slope; of several also whether one of them grows, or each is larger than the last."""
        found = {self.together.level(limit)}
        if self.processes > 1:
            found |= {self.successive.level(limit)}
            found |= {GROWS} if self.steepest.level(limit) == GROWS else set()
        return next(level for level in (GROWS, UNKNOWN, LEVEL) if level in found)


def growth(of_process: Sequence[Series], limit: float) -> Growth:
    """of_process: warm, of each process that was looked at often enough, the earliest first."""
    alone = [slope([one]) for one in of_process]
    grows = [one for one in alone if one.level(limit) == GROWS]
    means = [(steps.mean(), values.mean()) for steps, values in of_process]
    x, y = np.array(sorted(means)).T
    return Growth(
        processes=len(of_process),
        first=float(of_process[0][1][0]),
        last=float(of_process[-1][1][-1]),
        most=max(float(values.max()) for _, values in of_process),
        together=slope(of_process),
        steepest=max(grows or alone, key=lambda one: one.value),
        successive=slope([(x, y)]),
    )
