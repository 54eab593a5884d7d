"""`composer train.py yamls/500m.yaml` itself: console to console, killed, stopped, resumed.

- The uninterrupted run is one; the other is killed (-9) at step 15, once the checkpoint of step 10 is complete, stopped
  (SIGTERM) at 22, and finishes: are all its losses those of the first, bit for bit?
- On a GPU two runs may differ without any resume. Until the step that the other resumed from, both are uninterrupted:
  how far they differ there stands beside the difference after it. Where they differ only after it, a second
  uninterrupted run says whether any two do. Which operation it is, kernels' `same bits again` names.
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
    seconds = time.monotonic() - start
    run.figure("uninterrupted run, start to end", seconds, "s")
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
    only_after = _compare(run, losses(whole), losses(cut), steps, after_kill)
    shutil.rmtree(cut, ignore_errors=True)
    if only_after and run.left() > 1.3 * seconds:
        expect_code(run, train_to_end(run, "500m", of_cut), 0, "the second uninterrupted run")
        other = differing(losses(whole), losses(cut))
        run.figure("two uninterrupted runs: steps whose loss has other bits", len(other), expected=0)
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


def _compare(run: Run, whole: dict[int, float], cut: dict[int, float], steps: int, resumed: int) -> bool:
    """Whether losses have other bits, and only after step `resumed`."""
    run.figure("steps of the interrupted run", len(cut), expected=steps, check=sorted(cut) == sorted(whole))
    other = differing(whole, cut)
    run.figure("steps whose loss has other bits", len(other), expected=0, source="docs/resume.md", top=True)
    before, after = ([step for step in whole if (step <= resumed) == uninterrupted] for uninterrupted in (True, False))
    run.figure("the first such step", other[0] if other else "none")
    if not other:
        kind = "none"
    elif other[0] <= resumed:
        kind = f"two runs differ by themselves, from step {other[0]} on"
    else:
        kind = "only after the resume"
    run.figure("kind of difference", kind, top=True)
    early, far = (_farthest(whole, cut, part) for part in (before, after))
    run.figure(f"largest relative difference of a loss, steps 1 to {resumed}, both uninterrupted",
               early, top=True)  # fmt: skip
    run.figure(f"largest relative difference of a loss, after step {resumed}", far, expected=1e-3, source="at most",
               check=early <= 1e-3 and far <= 1e-3, top=True)  # fmt: skip
    return bool(other) and other[0] > resumed


def _farthest(whole: dict[int, float], cut: dict[int, float], steps: list[int]) -> float:
    """NaN where a loss is."""
    found = [abs(cut[step] - whole[step]) / whole[step] for step in steps if step in cut]
    return max(found, default=0.0, key=lambda far: (math.isnan(far), far))
