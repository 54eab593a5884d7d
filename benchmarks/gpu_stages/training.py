"""Runs of `train.py` as a user starts them, in the pack's text, and what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_stages.run import ROOT, Run

TINY = [
    "model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.n_kv_heads=1", "model.n_experts=4",
    "model.top_k=2", "model.expert_hidden=32", "max_seq_len=64", "num_workers=0", "loggers.tensorboard=null",
]  # fmt: skip


def settings_of(run: Run, folder: Path, *settings: str, warmup: str = "2ba", evaluate: bool = False) -> list[str]:
    """key=value of a run on the pack's data, into `folder`; small in a dry run."""
    evaluation = f"eval_data.local={run.pack / 'data'}" if evaluate else "eval_data=null"
    found = [f"tokenizer={run.pack / 'gpt2'}", f"train_data.local={run.pack / 'data'}", evaluation]
    found += [f"save_folder={folder}", f"run_name={folder.name}", "log_interval=1ba", f"scheduler.t_warmup={warmup}"]
    return [*found, *(TINY if run.dry else []), *settings]


def start_training(run: Run, yaml: str, settings: list[str], *, launcher: bool = False) -> subprocess.Popen:
    """launcher: as `composer train.py`, else as `python train.py`."""
    command = [sys.executable, *(["-m", "composer.cli", "-n", "1"] if launcher else []), "train.py"]
    log = open(run.work / "train.log", "ab")  # noqa: SIM115 - the child's from here on
    try:
        return subprocess.Popen([*command, f"yamls/{yaml}.yaml", *settings], cwd=ROOT, stdout=log, stderr=log)
    finally:
        log.close()


def train_to_end(run: Run, yaml: str, settings: list[str], *, launcher: bool = False) -> int:
    """The exit code."""
    process = start_training(run, yaml, settings, launcher=launcher)
    try:
        return process.wait(max(1.0, run.left() - 3))
    finally:
        process.kill()


def train_watched(run: Run, yaml: str, settings: list[str]) -> tuple[int, list[tuple[float, str]]]:
    """As `train_to_end`: the exit code, and each line that was printed with its seconds since the start."""
    log = run.work / "train.log"
    before = log.stat().st_size if log.is_file() else 0
    start = time.monotonic()
    process = start_training(run, yaml, settings)
    seen: list[tuple[float, str]] = []
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            file.seek(before)
            while True:
                ended = process.poll() is not None  # asked before the rest is read
                seconds = time.monotonic() - start
                seen += [(seconds, line) for line in file.read().splitlines()]
                if ended:
                    return process.returncode, seen
                if run.left() < 3:
                    raise TimeoutError(f"not done in time; {tail(run)}")
                time.sleep(0.05)
    finally:
        process.kill()


def train_and_signal(
    run: Run, yaml: str, settings: list[str], *, folder: Path, step: int, number: int, saved: int | None = None
) -> int:
    """Sends the signal once this start has logged `step`, and the checkpoint of step `saved` is complete (a fast card
    logs steps while it is written); the exit code (minus the number where the signal itself ended it).
    """
    before = metrics_of(folder).stat().st_mtime_ns if metrics_of(folder).is_file() else 0
    process = start_training(run, yaml, settings)
    try:
        while process.poll() is None:
            written = metrics_of(folder).is_file() and metrics_of(folder).stat().st_mtime_ns != before
            if written and max(losses(folder), default=0) >= step and (saved is None or is_saved(folder, saved)):
                os.kill(process.pid, number)
                break
            if run.left() < 3:
                raise TimeoutError(f"step {step} was not reached in time; {tail(run)}")
            time.sleep(0.02)
        return process.wait(max(1.0, run.left() - 3))
    finally:
        process.kill()


def is_saved(folder: Path, step: int) -> bool:
    return (folder / f"step-{step:08}" / "manifest.json").is_file()


def resumed_from(folder: Path) -> list[int]:
    """The step of each start of a run that was one."""
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event["step"] for event in map(json.loads, lines) if event["event"] == "resume"]


def metrics_of(folder: Path) -> Path:
    return folder / "metrics.jsonl"


def rows(folder: Path, key: str) -> dict[int, Any]:
    """A metric of a run by step."""
    path = metrics_of(folder)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    found = [json.loads(line) for line in lines]
    return {row["step"]: row[key] for row in found if key in row}


def losses(folder: Path) -> dict[int, float]:
    return rows(folder, "train/loss")


def tail(run: Run, lines: int = 30) -> str:
    """The end of what the runs said."""
    path = run.work / "train.log"
    said = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return "\n".join(said[-lines:])


def expect_code(run: Run, code: int, wanted: int, what: str) -> None:
    if code != wanted:
        raise RuntimeError(f"{what}: exit code {code}, not {wanted}\n{tail(run)}")


KILL, TERM = signal.SIGKILL, signal.SIGTERM
