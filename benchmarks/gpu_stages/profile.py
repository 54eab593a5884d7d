"""`moe profile --trace` of yamls/500m.yaml: where a step's time goes, and how long the GPU is idle."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import sys

from gpu_stages.run import ROOT, Run
from gpu_stages.training import settings_of


def profile(run: Run) -> None:
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
