"""A user's first minutes: five steps of 500m, evaluated, saved, and the same command with more steps resumes."""

from __future__ import annotations

import json
import math
import shutil
import time

from gpu_stages.fp32_product import METRIC, Fp32Product
from gpu_stages.run import Run
from gpu_stages.training import expect_code, losses, rows, settings_of, train_watched

MARKS = {  # how a line of the console begins, and what is done then
    "starting": "yaml and imports",
    "  start ": "model and data",
    "device_train_microbatch_size: auto": "trainer; the search begins",
    "  microbatch ": "the search for a microbatch",
    "eval at step 0": "the first evaluation",
    "step ": "the first step",
    "done": "the last step, saved",
}


def smoke(run: Run) -> None:
    folder = run.work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    product = f"{Fp32Product.__module__}.{Fp32Product.__name__}"
    settings = settings_of(
        run, folder, "global_train_batch_size=16", "save_interval=5ba", "eval_interval=5ba", "eval_data.max_batches=2",
        "sample_prompts=[the]", f"callbacks=[{{class: benchmarks.{product}}}]", evaluate=True,
    )  # fmt: skip
    _train(run, [*settings, "max_duration=5ba"], "five steps")
    first = losses(folder)
    vocabulary = json.loads((run.pack / "data" / "meta.json").read_text(encoding="utf-8"))["vocab_size"]
    start = math.log(vocabulary)
    run.figure("loss at step 1", first[1], expected=start, source="ln(vocabulary)", check=abs(first[1] - start) < 0.5)
    run.figure("steps", len(first), expected=5, check=sorted(first) == [1, 2, 3, 4, 5])
    evaluated = rows(folder, "metrics/eval/loss")
    run.figure("evaluated", evaluated.get(5, math.nan), expected=first[5], source="loss at step 5",
               check=abs(evaluated.get(5, math.nan) - first[5]) < 0.5)  # fmt: skip
    exact = max(rows(folder, METRIC).values(), default=math.nan)
    run.check_norm("products in fp32 inside the run (in TF32 above 1e-4)", exact, 1e-5)
    saved = (folder / "step-00000005" / "manifest.json").is_file()
    run.figure("saved at step 5", "yes" if saved else "no", check=saved)
    _train(run, [*settings, "max_duration=8ba"], "resuming to step 8")
    after = losses(folder)
    run.figure(
        "resumes at step", min(set(after) - set(first), default=0), expected=6, check=sorted(after)[5:] == [6, 7, 8]
    )
    same = all(after[step] == loss for step, loss in first.items())
    run.figure("finite and falling", after[8], check=same and math.isfinite(after[8]) and after[8] < after[1])
    rate = rows(folder, "throughput/tokens_per_sec")
    run.figure("tokens/s at step 8", rate[8], "tokens/s", top=True)
    if peak := rows(folder, "memory/torch_peak_gb"):
        run.figure("peak of torch's memory", max(peak.values()), "GB")
    shutil.rmtree(folder, ignore_errors=True)  # 8.5 GB


def _train(run: Run, settings: list[str], what: str) -> None:
    """Records the seconds from the start until each of `MARKS`, and to the end."""
    start = time.monotonic()
    code, lines = train_watched(run, "500m", settings)
    expect_code(run, code, 0, what)
    for mark, done in MARKS.items():
        if seconds := next((seconds for seconds, line in lines if line.startswith(mark)), None):
            run.figure(f"{what}: from the start to: {done}", seconds, "s", top=mark == "step ")
    run.figure(f"{what}: from the start to the end", time.monotonic() - start, "s")
