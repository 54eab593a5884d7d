"""`composer train.py yamls/500m.yaml` itself: console to console, killed, stopped, resumed.

- The uninterrupted run is one; the other is killed (-9) at step 15, once the checkpoint of step 10 is complete, stopped
  (SIGTERM) at 22, and finishes: are all its losses those of the first, bit for bit?
- A difference before the step that the other resumed from is one of any two runs: which operation it is, kernels'
  `same bits again` names. One that begins after it is the resume's.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from pathlib import Path

from gpu_stages.run import Run
from gpu_stages.training import (
    KILL,
    TERM,
    expect_code,
    is_saved,
    losses,
    resumed_from,
    rows,
    settings_of,
    tail,
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
    run.record["console"] = tail(run, 20)
    _speed(run, whole)
    if found := microbatch_of(whole):  # a search takes a compilation
        settings.append(f"device_train_microbatch_size={found}")
    of_cut = settings_of(run, cut, *settings)
    code = train_and_signal(run, "500m", of_cut, folder=cut, step=kill, number=KILL, saved=save)
    run.figure("killed: exit code", code, expected=-KILL, check=code == -KILL)
    code = train_and_signal(run, "500m", of_cut, folder=cut, step=stop, number=TERM)
    run.figure("SIGTERM: exit code", code, expected=75, check=code == 75)
    reached = max(losses(cut))
    saved = is_saved(cut, reached)
    run.figure("SIGTERM: the step that was reached is saved", "yes" if saved else "no", check=saved)
    expect_code(run, train_to_end(run, "500m", of_cut), 0, "the resumed run")
    resumes = resumed_from(cut)
    after_kill, after_term = resumes if len(resumes) == 2 else (0, resumes[-1] if resumes else 0)
    run.figure("after the kill it resumed from step", after_kill, expected=save, source="or a later save",
               check=after_kill >= save)  # fmt: skip
    run.figure("after SIGTERM it resumed from step", after_term, expected=reached, check=after_term == reached)
    _compare(run, losses(whole), losses(cut))
    for folder in (whole, cut):
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
        run.figure("a save holds up training", max(blocked.values()), "s", top=True)
    if mfu := rows(folder, "throughput/device/mfu"):
        run.figure("MFU of the data sheet", statistics.median(list(mfu.values())[len(mfu) // 2 :]), top=True)
    if found := microbatch_of(folder):
        run.figure("auto: microbatch", found, "sequences")


def differing(whole: dict[int, float], cut: dict[int, float]) -> list[int]:
    """The steps whose loss has other bits."""
    return [step for step in whole if cut.get(step) != whole[step]]


def _compare(run: Run, whole: dict[int, float], cut: dict[int, float]) -> None:
    run.figure("steps of the interrupted run", len(cut), expected=len(whole), check=sorted(cut) == sorted(whole))
    other = differing(whole, cut)
    run.figure("steps whose loss has other bits", len(other), expected=0, check=not other, top=True)
    if other:
        run.figure("the first such step", other[0])
        far = [abs(cut[step] - whole[step]) / whole[step] for step in other if step in cut]
        run.figure(
            "largest relative difference of a loss", max(far, key=lambda x: (math.isnan(x), x), default=math.nan)
        )
