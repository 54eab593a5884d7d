"""`composer train.py yamls/500m.yaml` itself: console to console, killed, stopped, resumed; and its profile.

The uninterrupted run is one; the other is killed (-9) at step 15, stopped (SIGTERM) at 22, and finishes: are all its
losses those of the first, bit for bit? What is not the same, kernels' `same bits again` names.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

from gpu_stages.run import ROOT, Run
from gpu_stages.training import (
    KILL,
    TERM,
    expect_code,
    losses,
    rows,
    settings_of,
    train_and_signal,
    train_to_end,
)


def train(run: Run) -> None:
    whole, cut = run.work / "whole", run.work / "cut"
    for folder in (whole, cut):
        shutil.rmtree(folder, ignore_errors=True)
    steps, save, kill, stop = 30, 10, 15, 22
    settings = [
        f"global_train_batch_size={64 if not run.dry else 8}",
        f"max_duration={steps}ba",
        f"save_interval={save}ba",
    ]
    start = time.monotonic()
    code = train_to_end(run, "500m", settings_of(run, whole, *settings), launcher=not run.dry)
    expect_code(run, code, 0, "the uninterrupted run")
    run.figure("uninterrupted run, start to end", time.monotonic() - start, "s")
    _speed(run, whole)
    of_cut = settings_of(run, cut, *settings)
    code = train_and_signal(run, "500m", of_cut, folder=cut, step=kill, number=KILL)
    run.figure("killed: exit code", code, expected=-KILL, check=code == -KILL)
    code = train_and_signal(run, "500m", of_cut, folder=cut, step=stop, number=TERM)
    run.figure("SIGTERM: exit code", code, expected=75, check=code == 75)
    reached = max(losses(cut))
    saved = (cut / f"step-{reached:08}" / "manifest.json").is_file()
    run.figure("SIGTERM: the step that was reached is saved", "yes" if saved else "no", check=saved)
    expect_code(run, train_to_end(run, "500m", of_cut), 0, "the resumed run")
    _compare(run, losses(whole), losses(cut), steps)
    for folder in (whole, cut):
        shutil.rmtree(folder, ignore_errors=True)
    if run.left() > 25 or run.dry:
        _profile(run)


def _speed(run: Run, folder: os.PathLike) -> None:
    from pathlib import Path

    folder = Path(folder)
    rate = rows(folder, "throughput/tokens_per_sec")
    late = [value for step, value in rate.items() if step > len(rate) // 2]
    run.figure("tokens/s, second half", statistics.median(late), "tokens/s", top=True)
    waited = rows(folder, "throughput/data_wait")
    run.figure(
        "waiting for data, second half", statistics.median(list(waited.values())[len(waited) // 2 :]), "of a step"
    )
    if blocked := rows(folder, "checkpoint/blocked_seconds"):
        run.figure("a save holds up training", max(blocked.values()), "s", top=True)
    if mfu := rows(folder, "throughput/device/mfu"):
        run.figure("MFU of the data sheet", statistics.median(list(mfu.values())[len(mfu) // 2 :]), top=True)
    found = json.loads((folder / "run.json").read_text(encoding="utf-8")).get("microbatch")
    if found:
        run.figure("auto: microbatch", found["size"], "sequences")


def _compare(run: Run, whole: dict[int, float], cut: dict[int, float], steps: int) -> None:
    run.figure("steps of the interrupted run", len(cut), expected=steps, check=sorted(cut) == sorted(whole))
    other = [step for step in whole if cut.get(step) != whole[step]]
    far = max((abs(cut[step] - whole[step]) / whole[step] for step in other if step in cut), default=0.0)
    run.figure("steps whose loss has other bits", len(other), expected=0, source="docs/resume.md", top=True)
    run.figure("largest relative difference of a loss", far, expected=1e-3, source="at most", check=far <= 1e-3)


def _profile(run: Run) -> None:
    trace = run.work / "trace.json"
    small = [f"global_train_batch_size={16 if not run.dry else 4}", f"save_folder={run.work / 'none'}"]
    settings = [s for s in settings_of(run, run.work / "none", *small) if not s.startswith("log_interval")]
    command = [
        sys.executable,
        "-m",
        "moe.cli.main",
        "profile",
        "yamls/500m.yaml",
        "--steps",
        "3",
        "--trace",
        str(trace),
    ]
    done = subprocess.run(
        [*command, *settings], cwd=ROOT, capture_output=True, text=True, timeout=max(1, run.left() - 2)
    )
    if done.returncode:
        raise RuntimeError(f"moe profile: exit code {done.returncode}\n{done.stderr[-2000:]}")
    table = done.stdout[done.stdout.find("a step:") :]
    for part, milliseconds, share in re.findall(r"^  (\w[\w ]*?) +([\d.,]+) +(-?[\d.]+)%", table, flags=re.M):
        run.figure(f"profile: {part}", float(milliseconds.replace(",", "")), f"ms, {share}% of the step")
    if idle := re.search(r"idle for ([\d.]+)%", table):
        run.figure("the GPU is idle", float(idle[1]) / 100, "of the traced step", top=True)
    with open(trace, "rb") as plain, gzip.open(run.out / "trace.json.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    trace.unlink()
