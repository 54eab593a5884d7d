"""A run in one line."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from moe.runs.changes import by_restart, changes
from moe.runs.interruptions import LEAST_RATE, RATE
from moe.runs.reading import Run

RECENT = 20  # rows over which the rate is taken
NEEDED = ("train/loss", RATE)  # all that a summary takes of most rows


@dataclass(frozen=True)
class Summary:
    """Attributes:
    loss: of training, in the last row.
    validations: of each validation set by name ("" for the only one) `loss`, the last, and `best`, the lowest.
    changes: how many settings were changed in mid-run.
    changed: in words, a line for each restart that changed some.
    saved: step of the newest checkpoint.
    updated: seconds since 1970.
    """

    name: str
    folder: str
    state: str
    step: int
    total_steps: int | None
    tokens: int | None
    total_tokens: int | None
    loss: float | None
    validations: dict[str, dict[str, float]]
    changes: int
    changed: list[str]
    rate: float | None
    seconds_left: float | None
    saved: int | None
    updated: float

    @property
    def share(self) -> float | None:
        return self.step / self.total_steps if self.total_steps else None

    def to_json(self) -> dict[str, Any]:
        """With the `validation` and `best` of a run with one validation set; null where there are several."""
        only = self.validations.get("", {})
        return {**asdict(self), "validation": only.get("loss"), "best": only.get("best")}


def summary(run: Run) -> Summary:
    total, found = run.total_steps, changes(run)
    series = {name: [value for _, value in run.series(key)] for name, key in run.validation().items()}
    rates = [value for _, value in run.series(RATE)[-RECENT:] if value > LEAST_RATE]
    rate = statistics.median(rates) if rates else None
    left = None
    if rate and total is not None and run.tokens_per_step and run.step < total:
        left = (total - run.step) * run.tokens_per_step / rate
    return Summary(
        name=run.name,
        folder=run.folder,
        state=run.state,
        step=run.step,
        total_steps=total,
        tokens=run.tokens,
        total_tokens=total * run.tokens_per_step if total is not None and run.tokens_per_step else None,
        loss=run.last("train/loss"),
        validations={name: {"loss": of[-1], "best": min(of)} for name, of in series.items() if of},
        changes=len(found),
        changed=[f"after step {step:,}: {text}" for step, text in by_restart(found).items()],
        rate=rate,
        seconds_left=left,
        saved=run.saved[-1] if run.saved else None,
        updated=run.updated,
    )
