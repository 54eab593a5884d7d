"""`train.py yamls/500m.yaml` interrupted, beside the same run uninterrupted: are all its losses the same, bit for bit?

- Both at the same time, on one card, as neither is timed. One is killed (-9) at step 12 or later, once the checkpoint
  of step 10 is complete, stopped (SIGTERM) at 24, and finishes. Steps are of 32 sequences in two microbatches.
- A difference before the step that it resumed from is one of any two runs: which operation it is, kernels'
  `same bits again` names. One that begins after it is the resume's.
"""

from __future__ import annotations

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu_stages.run import Run
from gpu_stages.training import (
    KILL,
    TERM,
    expect_code,
    is_saved,
    losses,
    resumed_from,
    settings_of,
    train_and_signal,
    train_to_end,
)

STEPS, SAVE, KILL_AT, STOP_AT = 40, 10, 12, 24
NEEDED = 45  # seconds without which it is not stopped and started once more


def resume(run: Run) -> None:
    whole, cut = run.work / "whole", run.work / "cut"
    for folder in (whole, cut):
        shutil.rmtree(folder, ignore_errors=True)
    batch = 32 if not run.dry else 8
    settings = [f"global_train_batch_size={batch}", f"device_train_microbatch_size={batch // 2}",
                f"max_duration={STEPS}ba", f"save_interval={SAVE}ba"]  # fmt: skip
    with ThreadPoolExecutor(1) as beside:
        uninterrupted = beside.submit(train_to_end, run, "500m", settings_of(run, whole, *settings))
        _interrupted(run, cut, settings_of(run, cut, *settings))
        expect_code(run, uninterrupted.result(), 0, "the uninterrupted run")
    _compare(run, losses(whole), losses(cut))
    for folder in (whole, cut):
        shutil.rmtree(folder, ignore_errors=True)


def _interrupted(run: Run, folder: Path, settings: list[str]) -> None:
    code = train_and_signal(run, "500m", settings, folder=folder, step=KILL_AT, number=KILL, saved=SAVE)
    run.figure("killed: exit code", code, expected=-KILL, check=code == -KILL)
    if run.left() > 2 * NEEDED or run.dry:
        code = train_and_signal(run, "500m", settings, folder=folder, step=STOP_AT, number=TERM)
        run.figure("SIGTERM: exit code", code, expected=75, check=code == 75)
        reached = max(losses(folder))
        saved = is_saved(folder, reached)
        run.figure("SIGTERM: the step that was reached is saved", "yes" if saved else "no", check=saved)
    else:
        reached = None
        run.figure("SIGTERM: left out", f"only {run.left():.0f} s were left")
    expect_code(run, train_to_end(run, "500m", settings), 0, "the resumed run")
    resumes = resumed_from(folder)
    after_kill = resumes[0] if len(resumes) == (1 if reached is None else 2) else 0
    run.figure("after the kill it resumed from step", after_kill, expected=SAVE, source="or a later save",
               check=after_kill >= SAVE)  # fmt: skip
    if reached is not None:
        run.figure("after SIGTERM it resumed from step", resumes[-1] if resumes else 0, expected=reached,
                   check=resumes[-1:] == [reached])  # fmt: skip


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
        largest = max(far, key=lambda x: (math.isnan(x), x), default=math.nan)
        run.figure("largest relative difference of a loss", largest)
