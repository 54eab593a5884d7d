"""What a stage found: one JSON file, complete at any moment.

- Written anew with every figure, aside and renamed: whenever the machine goes, what was found until then is readable.
- A figure stands beside what was expected of it. A check that fails is an error; a goal that is missed is a
  measurement.
- `running` is what a killed stage leaves. Only what is `done`, on the same card and torch, is not done again.

state       running, done, failed, or timed out
figures     name, value (a number or text), unit, expected, source (of what was expected), kind (check, goal or figure),
            met (of checks and goals; None where it is not known), top (stands in the table on the terminal)
before      the record of an earlier try that found something, on the same card and torch; None once the stage is done
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
    return record is not None and record["state"] == "done" and _same(record, machine)


def _same(record: Record, machine: Record) -> bool:
    return all(record.get(key) == machine[key] for key in ("dry", "card", "torch"))


def new_record(stage: str, machine: Record, earlier: Record | None = None) -> Record:
    """machine: dry, card, torch, date. earlier: the stage's last record; of it and what it keeps, that with the most
    figures is kept until the stage is done.
    """
    tries = [found for found in (earlier, (earlier or {}).get("before")) if found and _same(found, machine)]
    kept = max(tries, key=lambda found: len(found["figures"]), default=None)
    before = {**kept, "before": None} if kept and kept["figures"] else None
    return {
        "stage": stage,
        "state": "running",
        "seconds": 0.0,
        **machine,
        "figures": [],
        "fault": None,
        "before": before,
    }


def only_before(record: Record) -> list[Record]:
    """The figures that only an earlier try found."""
    names = {figure["name"] for figure in record["figures"]}
    return [figure for figure in (record.get("before") or {}).get("figures", []) if figure["name"] not in names]


def faults(record: Record) -> list[str]:
    """The names of failed checks."""
    return [figure["name"] for figure in record["figures"] if figure["kind"] == "check" and figure["met"] is False]
