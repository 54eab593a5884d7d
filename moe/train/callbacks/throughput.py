"""How fast a run trains, what it waits for, and what memory it takes; over the steps since the last row.

| metric | meaning |
|---|---|
| `throughput/tokens_per_sec` | tokens a second over all ranks, in steps: without evaluations and checkpoints |
| `throughput/device/tokens_per_sec` | the same for one device |
| `throughput/device/flops_per_sec` | model FLOPs a second of one device, forward and backward, without recomputation |
| `throughput/device/mfu` | their share of the device's dense bf16 peak; only where that is known |
| `throughput/step_seconds` | mean time of a step |
| `throughput/data_wait` | share of that spent in the loader's `next`; what the device still computes is no part |
| `memory/process_gb` | memory of this rank's process that is its own: RssAnon and page tables, GB (1e9 bytes) |
| `memory/page_cache_gb` | pages of files that it has mapped, shards among them; given back when memory is short |
| `memory/torch_peak_gb` | most memory that tensors have taken on the GPU so far |
| `time/train`, `time/val`, `time/total` | hours of training and of evaluation, over all starts |

In the place of Composer's SpeedMonitor, which waits for the device at every step and counts checkpoints as slow steps.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch
from composer import Callback, Logger, State
from composer.utils import dist

from moe.config.times import Every
from moe.data.read.waiting import WaitingLoader
from moe.model.flops import peak_flops

HOUR = 3600.0


class Throughput(Callback):
    """The first of the callbacks: what the others do at a step's end is no part of the step."""

    def __init__(self, *, flops_per_token: float, log: Every):
        self.flops_per_token = flops_per_token
        self.log = log
        self.peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self.evaluated = 0.0  # seconds, over all starts
        self.apart = 0.0  # of them those that Composer's clock takes for training
        self._start: float | None = None
        self._busy = self._waited = 0.0  # waited: of the loader, at the last row
        self._steps = 0

    def state_dict(self) -> dict[str, float]:
        return {"evaluated": self.evaluated, "apart": self.apart}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.evaluated = state["evaluated"]
        self.apart = state.get("apart", 0.0)  # earlier versions had none

    def spent(self, seconds: float) -> None:
        """Seconds between two steps in which tasks were scored."""
        self.evaluated += seconds
        self.apart += seconds

    def before_dataloader(self, state: State, logger: Logger) -> None:
        if self._start is None:  # else the loader came to an epoch's end and is asked again
            self._start = time.monotonic()

    def batch_end(self, state: State, logger: Logger) -> None:
        assert self._start is not None
        self._busy += time.monotonic() - self._start
        self._steps += 1
        self._start = None
        if self.log.due(int(state.timestamp.batch)):
            logger.log_metrics(self._metrics(state))
            self._busy, self._waited = 0.0, _waited(state)
            self._steps = 0

    def _metrics(self, state: State) -> dict[str, float]:
        rate = self._steps * self.log.tokens_per_step / self._busy
        of_device = rate / dist.get_world_size()
        trained = state.timestamp.total_wct.total_seconds() - self.apart
        metrics = {
            "throughput/tokens_per_sec": rate,
            "throughput/device/tokens_per_sec": of_device,
            "throughput/device/flops_per_sec": of_device * self.flops_per_token,
            "throughput/step_seconds": self._busy / self._steps,
            "throughput/data_wait": (_waited(state) - self._waited) / self._busy,
            **memory_gb(),
            "time/train": trained / HOUR,
            "time/val": self.evaluated / HOUR,
            "time/total": (trained + self.evaluated) / HOUR,
        }
        if self.peak is not None:
            metrics["throughput/device/mfu"] = of_device * self.flops_per_token / self.peak
        if torch.cuda.is_available():
            metrics["memory/torch_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return metrics

    def eval_end(self, state: State, logger: Logger) -> None:
        self.evaluated += state.eval_timestamp.total_wct.total_seconds()


def _waited(state: State) -> float:
    """Seconds, since this start."""
    assert isinstance(state.train_dataloader, WaitingLoader)
    return state.train_dataloader.waited


def memory_gb() -> dict[str, float]:
    """What this process holds for itself, and beside it the pages of mapped files, which are page cache: resident
    memory grows with the shards that are mapped, and that is no leak. A kernel that does not tell them apart (gVisor's)
    gives resident memory alone.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = {name: int(kib) * 1024 / 1e9 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE)}
    if "RssAnon" not in found:
        return {"memory/process_gb": found["VmRSS"]}
    own = found["RssAnon"] + found.get("VmPTE", 0.0)
    return {"memory/process_gb": own, "memory/page_cache_gb": found["RssFile"]}
