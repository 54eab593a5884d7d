"""yamls/medium.yaml for what time is left: loss, expert load and the steady rate of a real run."""

from __future__ import annotations

import shutil
import statistics

from gpu_stages.run import ROOT, Run
from gpu_stages.training import expect_code, losses, rows, settings_of, tail, train_to_end
from moe.config import load_config
from moe.model.flops import flops_per_token, model_shape, peak_flops
from moe.plan.estimate import MFU


def learn(run: Run) -> None:
    folder = run.work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    settings = settings_of(run, folder, "save_interval=100000ba", warmup="10ba")
    if run.dry:
        settings += ["global_train_batch_size=8", "max_duration=12ba"]
    else:
        settings += [f"time_limit={int(run.left() - 30)}s"]
    code = train_to_end(run, "medium", settings)
    if not run.dry and code == 75:
        code = 0  # stopped by its time limit, as it was to be
    expect_code(run, code, 0, "the run")
    found = losses(folder)
    if not found:
        raise RuntimeError(f"no step was logged\n{tail(run)}")
    last = max(found)
    ends = [loss for step, loss in found.items() if step > last - 10]
    run.figure("steps", last)
    run.figure("loss at step 1", found[min(found)])
    falls = statistics.mean(ends) < found[min(found)]
    run.figure("mean loss of the last 10 steps", statistics.mean(ends), "nats", check=falls, top=True)
    load = rows(folder, "experts/load_max")
    if load:
        run.figure(
            "largest expert load at the end", load[max(load)], expected=2.0, source="docs/monitoring.md: below 2"
        )
    rate = rows(folder, "throughput/tokens_per_sec")
    steady = statistics.median([value for step, value in rate.items() if step > last // 2])
    expected = None
    if not run.dry:
        import torch

        config = load_config(ROOT / "yamls/medium.yaml")
        flops = flops_per_token(**model_shape(config.model, 50257), seq_len=config.max_seq_len)
        peak = peak_flops(torch.cuda.get_device_name())
        expected = MFU * peak / flops if peak else None
    run.figure("steady tokens/s", steady, "tokens/s", expected=expected, source="moe estimate", top=True)
    shutil.rmtree(folder, ignore_errors=True)
