"""A run folder as it lies on disk, at any moment of the run's life: before its first row, half way, killed, done.

Decisions:
- Files are only read, and what a writer has not finished (a last line without its end, a config.yaml in the making) is
  not there yet. Nothing of torch or Composer is imported: looking costs no trainer its memory, and no viewer seconds.
- A log that cannot be read (a folder in its place, no permission, not one line that is JSON) counts as absent, and
  `notes` says so: one bad file hides neither the rest of its run nor other runs. Without run.json there is no run to
  show.
- The state is what run.json says, except where it says `running` and nobody holds the lock: then the process died.
  The test is a shared lock, let go at once; a trainer that starts just then tries for seconds. On a file system without
  locks only a run that is both long quiet and gone from this machine is known to have died.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe.common.errors import InputError
from moe.common.locks import has_locks, held_by
from moe.common.paths import expanded, refuse_irregular
from moe.common.units import clean_line
from moe.config import parse_time
from moe.config.values import BAD_YAML, plain_yaml
from moe.runs.columns import MOST_STEPS, Columns
from moe.runs.lines import Lines, json_object
from moe.runs.text import clean_all

RUN_FILE, METRICS, CONFIG = "run.json", "metrics.jsonl", "config.yaml"
RUNNING, INTERRUPTED, DONE, FAILED = "running", "interrupted", "done", "failed"
UNSURE = "running or interrupted"
STATES = {"running": RUNNING, "stopped": INTERRUPTED, "done": DONE, "failed": FAILED}
QUIET = 600.0  # seconds without a sign after which a run on another machine, whose lock cannot be seen, counts as dead
LAYERED = re.compile(r"^(.*?)/layer_(\d{1,9})(/.*)?$")


@dataclass(frozen=True)
class Run:
    """What a run folder tells.

    Attributes:
        record: run.json.
        config: config.yaml; empty where it is not written yet.
        metrics: metrics.jsonl; grows with it where a RunReader reads the run again.
        keys: names of all metrics, in the order in which they appeared.
        events: start, resume, change, checkpoint, evaluation, stop, done, failed, with `time` and `step`.
        alarms: step, time, name, message, fix.
        saved: steps of the checkpoints that are there, ascending.
        manifest: that of the newest of them.
        notes: which files could not be read.
        updated: when anything of the run was last written, seconds since 1970.
    """

    path: Path
    record: dict[str, Any]
    config: dict[str, Any]
    metrics: Columns
    keys: dict[str, None]
    events: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
    saved: list[int]
    manifest: dict[str, Any]
    state: str
    notes: list[str]
    updated: float

    @property
    def name(self) -> str:
        return clean_line(str(self.record.get("run_name") or self.path.name))

    @property
    def folder(self) -> str:
        """`path`, to be shown."""
        return clean_line(str(self.path))

    @property
    def step(self) -> int:
        """The last step that is known of."""
        return max([self.metrics.step, *self.saved[-1:]])

    @property
    def tokens_per_step(self) -> int | None:
        try:
            found = int(self.config["global_train_batch_size"]) * int(self.config["max_seq_len"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return found if 0 < found <= MOST_STEPS else None

    @property
    def total_steps(self) -> int | None:
        try:
            found = parse_time(self.config["max_duration"]).to_steps(self.tokens_per_step or 1)
        except (KeyError, ValueError):
            return None
        return found if found <= MOST_STEPS else None

    @property
    def tokens(self) -> int | None:
        return self.step * self.tokens_per_step if self.tokens_per_step else None

    @property
    def no_rows(self) -> str:
        """Why there are none, where there are none."""
        unread = any(note.startswith(clean_line(str(self.path / METRICS))) for note in self.notes)
        return "no row of metrics can be read" if unread else "no row of metrics is written yet"

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of a metric; one that is not finite, or that fp32 cannot hold, is dropped."""
        return self.metrics.series(key)

    def last(self, key: str) -> float | None:
        return self.metrics.last(key)

    def validation(self) -> dict[str, str]:
        """Validation sets by name ("" for the only one), each with the metric of its loss."""
        found = [re.fullmatch(r"metrics/eval(?:/(.+))?/loss", key) for key in self.keys]
        return {match[1] or "": match[0] for match in found if match}

    def layered(self) -> dict[str, dict[int, str]]:
        """Metrics logged for each layer: name without the layer -> layer -> metric."""
        found: dict[str, dict[int, str]] = {}
        for key in self.keys:
            if match := LAYERED.match(key):
                found.setdefault(match[1] + (match[3] or ""), {})[int(match[2])] = key
        return {name: dict(sorted(layers.items())) for name, layers in found.items()}

    def lists(self, key: str) -> list[tuple[int, list[float]]]:
        """(step, values) of a metric with a value for each expert."""
        return self.metrics.lists(key)

    def last_list(self, key: str) -> list[float] | None:
        return self.metrics.last_list(key)

    def samples(self) -> dict[str, list[tuple[int, str]]]:
        """What the model wrote after each of `sample_prompts`: prompt -> (step, text)."""
        return self.metrics.texts()


class RunReader:
    """Reads one run folder again and again; the logs only where they have grown. only: of long ones, see Lines."""

    def __init__(self, path: str | Path, only: Sequence[str] = ()):
        self.path = Path(expanded(os.fspath(path), "the run"))
        self._metrics = Lines(self.path / METRICS, Columns, ("step", *only) if only else ())
        self._events, self._alarms = (
            Lines(self.path / name, list[dict[str, Any]]) for name in ("events.jsonl", "alarms.jsonl")
        )

    def read(self) -> Run:
        """Raises InputError where there is no such folder, or no run in it; the message names what is there instead."""
        record = _record(self.path)
        metrics = self._metrics.read()
        events = [row for row in self._events.read() if isinstance(row.get("event"), str)]
        alarms = [{"fix": alarm.get("mend"), **alarm} for alarm in self._alarms.read()]  # 0.1 wrote "mend"
        saved = sorted(_steps(self.path))
        updated = _updated(self.path)
        state = _state(self.path, record, updated)
        notes = [log.error for log in (self._metrics, self._events, self._alarms) if log.error]
        if state == UNSURE:
            notes.append(f"{clean_line(str(self.path))}: {UNSURE}: this file system has no locks that would tell")
        return Run(
            path=self.path,
            record=record,
            config=_yaml(self.path / CONFIG),
            metrics=metrics,
            keys={key: None for key in self._metrics.keys if key != "step"},
            events=events,
            alarms=alarms,
            saved=saved,
            manifest=_manifest(self.path, saved),
            state=state,
            notes=notes,
            updated=updated,
        )


def read_run(path: str | Path, only: Sequence[str] = ()) -> Run:
    """Raises as `RunReader.read` does. only: as in Lines."""
    return RunReader(path, only).read()


def find_runs(folders: Iterable[str | Path]) -> list[Path]:
    """Run folders: those given, and those in the folders given."""
    found: dict[Path, None] = {}
    for folder in (Path(expanded(os.fspath(folder), "the folder")) for folder in folders):
        for path in [folder, *sorted(folder.glob("*"))]:
            if os.path.lexists(path / RUN_FILE):  # one that cannot be read is reported, not dropped
                found[path] = None
    return list(found)


def _record(path: Path) -> dict[str, Any]:
    try:
        refuse_irregular(path / RUN_FILE)
        record = json_object((path / RUN_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{clean_line(str(path))}: {clean_line(_instead(path))}; give a run's save_folder, e.g. checkpoints/demo"
        ) from None
    except OSError as error:
        cause = error.strerror or error
        raise InputError(
            f"{clean_line(str(path / RUN_FILE))} cannot be read ({cause}); restore it from a copy"
        ) from None
    if record is None:
        raise InputError(f"{clean_line(str(path / RUN_FILE))}: is damaged; restore it from a copy")
    return record


def _instead(path: Path) -> str:
    if str(path).startswith("s3:"):
        return "is on s3; the logs of such a run are in ./runs/RUN_NAME"
    if not path.exists():
        return "there is no such folder"
    if not path.is_dir():
        return "is a file, not a run folder"
    if runs := find_runs([path]):
        listed = ", ".join(run.name for run in runs[:5]) + (", ..." if len(runs) > 5 else "")
        return f"is not a run folder but holds some ({listed})"
    return "is not a run folder (it has no run.json)" if any(path.iterdir()) else "is empty"


def _yaml(path: Path) -> dict[str, Any]:
    try:
        refuse_irregular(path)
        content = clean_all(plain_yaml(path.read_text(encoding="utf-8")))
    except (OSError, *BAD_YAML):
        return {}
    return content if isinstance(content, dict) else {}


def _steps(path: Path) -> list[int]:
    names = [folder.name.removeprefix("step-") for folder in path.glob("step-*")]
    return [int(name) for name in names if re.fullmatch("[0-9]{1,15}", name)]


def _manifest(path: Path, saved: list[int]) -> dict[str, Any]:
    """The newest that can be read."""
    for step in reversed(saved):
        manifest = path / f"step-{step:08d}" / "manifest.json"
        try:
            refuse_irregular(manifest)
            found = json_object(manifest.read_bytes())
        except OSError:
            continue
        if found is not None:
            return found
    return {}


def _updated(path: Path) -> float:
    times = [0.0]
    for name in (RUN_FILE, METRICS, "events.jsonl", CONFIG):
        try:
            times.append((path / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _state(path: Path, record: dict[str, Any], updated: float) -> str:
    state = STATES.get(str(record.get("state")), INTERRUPTED)
    if state != RUNNING:
        return state
    if record.get("host") not in (None, os.uname().nodename):
        return RUNNING if time.time() - updated < QUIET else INTERRUPTED
    if held_by(path / ".lock"):
        return RUNNING
    if has_locks(path / ".lock") or (time.time() - updated > QUIET and not _lives(record.get("pid"))):
        return INTERRUPTED
    return UNSURE


def _lives(pid: Any) -> bool:
    """Whether a process of this number is on this machine."""
    return isinstance(pid, int) and os.path.exists(f"/proc/{pid}")
