"""Card, driver and clocks as they are found, and the two ceilings: bytes and products a second.

Nothing is changed on the card. The data sheets' bandwidths are NVIDIA's.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import partial

import torch

from gpu_stages.models import matmul_flops, seconds_of
from gpu_stages.run import Run
from moe.model.flops import peak_flops

BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.0e12, "B200": 8.0e12, "4090": 1.01e12, "L40S": 0.86e12}
QUERY = "driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"


def machine(run: Run) -> None:
    run.figure("python", platform.python_version())
    run.figure("torch", torch.__version__, top=True)
    name = "CPU" if run.dry else torch.cuda.get_device_name()
    run.figure("card", name, top=True)
    if not run.dry:
        run.figure("compute capability", ".".join(map(str, torch.cuda.get_device_capability())))
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "--id=0"], capture_output=True, text=True
        )
        for key, value in zip(QUERY.split(","), done.stdout.strip().split(", "), strict=False):
            run.figure(key, value)
    run.figure("CPU cores", len(os.sched_getaffinity(0)))
    run.figure("/dev/shm free", shutil.disk_usage("/dev/shm").free / 1e9, "GB")
    numbers = 2**30 if not run.dry else 2**16
    a = torch.randn(numbers, device=run.device)
    b = torch.empty_like(a)
    rate = 2 * a.nbytes / seconds_of(partial(b.copy_, a), run.device)
    sheet = next((value for key, value in BANDWIDTH.items() if key in name), None)
    run.figure(
        "copy, bytes read and written", rate / 1e12, "TB/s", expected=sheet and sheet / 1e12, source="data sheet"
    )
    del a, b
    peak = peak_flops(name)
    run.figure(
        "bf16 matrix product, 8192",
        matmul_flops(run.device) / 1e12,
        "TFLOP/s",
        expected=peak and peak / 1e12,
        source="data sheet",
        top=True,
    )
