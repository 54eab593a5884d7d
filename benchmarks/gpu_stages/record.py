"""What a stage found: one JSON file, complete at any moment.

- Written anew with every figure, aside and renamed: whenever the machine goes, what was found until then is readable.
- A figure stands beside what was expected of it. A check that fails is an error; a goal that is missed is a
  measurement.
- `running` is what a killed stage leaves. Only what is `done`, on the same card and torch, is not done again.

state       running, done, failed, or timed out
figures     name, value (a number or text), unit, expected, source (of what was expected), kind (check, goal or figure),
            met (of checks and goals; None where it is not known), top (stands in the table on the terminal)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def write_record(folder: Path, record: Record) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['stage']}.json"
    aside = path.with_suffix(".json.tmp")
    aside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


def read_record(folder: Path, stage: str) -> Record | None:
    """None where there is none, or none that can be read: it is then made anew."""
    try:
        record = json.loads((folder / f"{stage}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("stage") == stage else None


def read_records(folder: Path, stages: list[str]) -> dict[str, Record]:
    found = {stage: read_record(folder, stage) for stage in stages}
    return {stage: record for stage, record in found.items() if record is not None}


def is_done(record: Record | None, machine: Record) -> bool:
    """machine: what a new record of this stage would begin with (see `new_record`)."""
    same = ("dry", "card", "torch")
    return record is not None and record["state"] == "done" and all(record.get(k) == machine[k] for k in same)


def new_record(stage: str, machine: Record) -> Record:
    """machine: dry, card, torch, date."""
    return {"stage": stage, "state": "running", "seconds": 0.0, **machine, "figures": [], "fault": None}


def faults(record: Record) -> list[str]:
    """The names of failed checks."""
    return [figure["name"] for figure in record["figures"] if figure["kind"] == "check" and figure["met"] is False]
