"""`composer train.py yamls/500m.yaml`, 30 steps of 64 sequences: `auto`, console, speed, what a save holds up."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from pathlib import Path

from gpu_stages.run import Run
from gpu_stages.training import expect_code, rows, settings_of, tail, train_to_end

STEPS, SAVE = 30, 10


def train(run: Run) -> None:
    folder = run.work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    batch = f"global_train_batch_size={64 if not run.dry else 8}"
    settings = settings_of(run, folder, batch, f"max_duration={STEPS}ba", f"save_interval={SAVE}ba")
    start = time.monotonic()
    code = train_to_end(run, "500m", settings, launcher=not run.dry)
    expect_code(run, code, 0, "the run")
    run.figure("from start to end", time.monotonic() - start, "s")
    run.record["console"] = tail(run, 20)
    _speed(run, folder)
    shutil.rmtree(folder, ignore_errors=True)


def microbatch_of(folder: Path) -> int | None:
    """What `auto` found, where it searched."""
    found = json.loads((folder / "run.json").read_text(encoding="utf-8")).get("microbatch")
    return found and found["size"]


def _speed(run: Run, folder: Path) -> None:
    rate = rows(folder, "throughput/tokens_per_sec")
    late = [value for step, value in rate.items() if step > len(rate) // 2]
    run.figure("tokens/s, second half", statistics.median(late), "tokens/s", top=True)
    waited = rows(folder, "throughput/data_wait")
    run.figure(
        "waiting for data, second half", statistics.median(list(waited.values())[len(waited) // 2 :]), "of a step"
    )
    if blocked := rows(folder, "checkpoint/blocked_seconds"):
        last = blocked.pop(STEPS, None)
        if blocked:
            run.figure("a save holds up training", max(blocked.values()), "s", top=True)
        if last is not None:
            run.figure("the last save, which waits for what it writes", last, "s")
    if mfu := rows(folder, "throughput/device/mfu"):
        run.figure("MFU of the data sheet", statistics.median(list(mfu.values())[len(mfu) // 2 :]), top=True)
    if found := microbatch_of(folder):
        run.figure("auto: microbatch", found, "sequences")
