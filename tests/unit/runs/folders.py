"""Run folders as the trainer leaves them, made of files alone."""

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

TOKENS_PER_STEP = 8 * 128
CONFIG = {
    "run_name": "small",
    "max_seq_len": 128,
    "global_train_batch_size": 8,
    "max_duration": "100ba",
    "model": {"n_layers": 2, "n_experts": 4},
    "optimizer": {"name": "muon", "lr": 0.001},
    "train_data": {"local": "no-such-folder", "streams": {}},
}
HOST = os.uname().nodename


def row(step: int, layers: int = 2, experts: int = 4) -> dict:
    """A row of metrics: the loss falls, the last expert of layer 1 is idle."""
    made: dict = {
        "step": step,
        "train/loss": 4 + 6 * math.exp(-step / 20),
        "optim/lr/muon": 0.001,
        "optim/lr/norms": 0.001,
        "optim/grad_norm": 1.5,
        "optim/grad_norm_clipped": 1.0,
        "throughput/tokens_per_sec": 2048.0,
        "experts/load_max": 2.0,
        "experts/load_min": 0.0,
        "odd/metric": float(step),
    }
    for layer in range(layers):
        made[f"experts/load/layer_{layer:02d}"] = [4 / 3] * (experts - 1) + [0.0] if layer == 1 else [1.0] * experts
        made[f"experts/max_vio/layer_{layer:02d}"] = layer / 3
    return made


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


def make_run(
    folder: Path,
    *,
    steps: int = 100,
    state: str = "done",
    host: str = HOST,
    rows: list[dict] | None = None,
    saved: tuple[int, ...] | None = None,
    events: tuple[dict, ...] = (),
    alarms: tuple[dict, ...] = (),
    versions: dict | None = None,
    **config: object,
) -> Path:
    """A run with a row every second step, two evaluations and checkpoints of steps 50 and 100; `config` changes
    top-level settings.
    """
    saved = tuple(step for step in (50, 100) if step <= steps) if saved is None else saved
    folder.mkdir(parents=True)
    settings = {**CONFIG, "run_name": folder.name, **config}
    record = {"id": "0123abcd", "run_name": settings["run_name"], "state": state, "host": host, "pid": 42}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    if rows is None:
        rows = [{"step": 0, "metrics/eval/loss": 10.5}, *(row(step) for step in range(2, steps + 1, 2))]
        rows += [{"step": steps, "metrics/eval/loss": 4.5}, {"step": steps, "samples/Once": " upon a time"}]
    write_lines(folder / "metrics.jsonl", rows)
    for name, lines in (("events", events), ("alarms", alarms)):
        if lines:
            write_lines(folder / f"{name}.jsonl", list(lines))
    for step in saved:
        path = folder / f"step-{step:08d}"
        path.mkdir()
        manifest = {
            "step": step,
            "tokens": step * TOKENS_PER_STEP,
            "config": settings,
            "data": "f1",
            "saved_at": "2026-01-01T00:00:50Z",
            "versions": versions or {"torch": "2.11.0"},
            "files": {"state.pt": {"bytes": 2_000_000, "xxh64": "0"}},
        }
        (path / "manifest.json").write_text(json.dumps(manifest))
    return folder


def stamp(second: int) -> str:
    return f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}Z"


KILLED = (  # killed after step 70, resumed from 50; a step takes half a second
    {"time": stamp(0), "event": "start", "step": 0, "reached": 0},
    {"time": stamp(25), "event": "checkpoint", "step": 50},
    {"time": stamp(95), "event": "resume", "step": 50, "reached": 70},
    {"time": stamp(120), "event": "done", "step": 100},
)
ALARM = {
    "time": stamp(60),
    "step": 70,
    "name": "dead_expert",
    "message": "an expert of layer 1 gets nothing",
    "fix": "raise model.balance_loss",
}


@contextmanager
def training_in(folder: Path) -> Iterator[None]:
    """The lock is held, as by a process that trains there."""
    with open(folder / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


CHANGED = (
    {"time": "2026-01-01T00:00:00Z", "event": "start", "step": 0, "reached": 0},
    {"time": "2026-01-01T00:00:25Z", "event": "stop", "step": 50},
    {"time": "2026-01-01T00:00:30Z", "event": "resume", "step": 50, "reached": 50},
    {
        "time": "2026-01-01T00:00:30Z",
        "event": "change",
        "step": 50,
        "changes": [
            {"key": "optimizer.lr", "was": 0.002, "now": 0.001},
            {"key": "alert_command", "was": None, "now": "<a>"},
        ],
        "command": "train.py run.yaml optimizer.lr=0.001",
    },
)
