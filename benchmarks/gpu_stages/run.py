"""What a stage is given: where it runs, what it may use, and where its figures go."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_stages.record import Record, write_record

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Run:
    """dry: tiny shapes on the CPU, to see that every line works; what it measures means nothing.

    work: a folder for what is made on the way. pack: tokenizer and data (gpu_stages.pack). deadline: of time.monotonic.
    """

    record: Record
    out: Path
    work: Path
    pack: Path
    dry: bool
    deadline: float
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    def left(self) -> float:
        """Seconds until this stage is ended."""
        return self.deadline - time.monotonic()

    def figure(
        self,
        name: str,
        value: float | str,
        unit: str = "",
        *,
        expected: float | str | None = None,
        source: str = "",
        check: bool | None = None,
        goal: bool | None = None,
        top: bool = False,
    ) -> None:
        """Records one. check: whether it is right. goal: whether it is reached; not reported of a dry run."""
        kind = "check" if check is not None else "goal" if goal is not None else "figure"
        met = check if check is not None else None if self.dry else goal
        if isinstance(value, float):
            value = float(f"{value:.6g}")
        if isinstance(expected, float):
            expected = float(f"{expected:.6g}")
        row: dict[str, Any] = dict(name=name, value=value, unit=unit, expected=expected, source=source)
        self.record["figures"].append({**row, "kind": kind, "met": met, "top": top})
        self.save()
        print(f"  {name}: {value} {unit}".rstrip(), flush=True)

    def check_norm(self, name: str, error: float, most: float) -> None:
        """A relative error: norm of the difference over norm of the reference. NaN never passes."""
        self.figure(name, error, expected=most, source="at most", check=bool(error <= most))

    def save(self) -> None:
        self.record["seconds"] = round(time.monotonic() - self.started, 1)
        write_record(self.out, self.record)
