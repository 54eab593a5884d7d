"""Several ranks without a launcher: forked from the test's process, which has imported everything already."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import torch.distributed
import torch.multiprocessing


def on_ranks(count: int, work: Callable[[int], None]) -> None:
    """Calls work(rank) in `count` processes of one gloo group; a failed assertion in one of them is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _rank, args=(work, count, f"file://{folder}/store"), nprocs=count, start_method="fork"
        )


def _rank(rank: int, work: Callable[[int], None], count: int, store: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    work(rank)
    torch.distributed.destroy_process_group()
