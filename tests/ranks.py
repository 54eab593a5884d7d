"""Several ranks without a launcher: forked from the test's process, or new ones, as autograd outlives no fork."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable

import torch.distributed
import torch.multiprocessing


def on_ranks(count: int, work: Callable[[int], None], *, fork: bool = True) -> None:
    """Calls work(rank) in `count` processes of one gloo group; a failed assertion in one of them is raised here.

    With fork=False work may use autograd, and must be a function of a module, which each process imports.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _rank, args=(work, count, f"file://{folder}/store"), nprocs=count, start_method="fork" if fork else "spawn"
        )


def _rank(rank: int, work: Callable[[int], None], count: int, store: str) -> None:
    gc.freeze()  # garbage of the process that was forked: the end of a TCPStore joins a thread that is not here
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    work(rank)
    torch.distributed.barrier()
    os._exit(0)  # gloo's group, as it is destroyed, holds the GIL and joins a thread that may wait for it: a hang
