"""Rows of tokens as batches with labels, wherever the rows come from.

- Evaluation is sequential: global batch i holds sequences [i*G, (i+1)*G). Rows that pad the last batch have all labels
  -100, so every rank has the same number of batches and no sequence counts twice.
- Labels are unshifted; the token after an EOS is no target when documents do not see each other.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import multiprocessing.queues
import os
import signal
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from moe.common.units import note

IGNORED = -100


class Collate:
    """Rows [S] to {"tokens": int64 [B, S], "labels": int64 [B, S]}. A row None is padding: EOS tokens, no labels."""

    def __init__(self, *, seq_len: int, eos_id: int, document_mask: bool) -> None:
        self.seq_len, self.eos_id, self.document_mask = seq_len, eos_id, document_mask

    def __call__(self, rows: list[np.ndarray | None]) -> dict[str, torch.Tensor]:
        tokens = np.full((len(rows), self.seq_len), self.eos_id, np.int64)
        for i, row in enumerate(rows):
            if row is not None:
                tokens[i] = row
        labels = tokens.copy()
        if self.document_mask:
            labels[:, 1:][tokens[:, :-1] == self.eos_id] = IGNORED
        for i, row in enumerate(rows):
            if row is None:
                labels[i] = IGNORED
        return {"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(labels)}


def start_worker(worker: int) -> None:
    """What a loader's worker does first.

    Ctrl+C, SIGTERM, a hang-up and SIGUSR1 may reach the entire process group; the trainer decides, and the workers
    live until its step is saved. A second SIGTERM ends a worker: the loader itself sends one to a worker that is stuck.
    SIGUSR2 writes the worker's stacks to stderr: the trainer's watchdog sends it. The kernel ends a worker with its
    trainer: one that hangs would not notice. A batch that cannot be sent ends the worker, which the trainer notices:
    Python's queue would drop it, and the trainer wait for it for ever. What the trainer had before the fork is not
    the worker's to collect: the end of some objects waits for threads that are the trainer's (a TCPStore's).
    """
    gc.freeze()

    def once(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, once)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _end_worker(error: Exception, batch: object) -> None:
    """In the thread that sends batches."""
    fix = "; raise `ulimit -n`" if "Too many open files" in str(error) else ""
    note(f"error: a loader worker cannot send a batch: {error}{fix}")
    os._exit(1)


class EvalRows(Dataset):
    """The rows one rank evaluates, in order: row r of its batch i is sequence i * group + first + r, None where the
    last global batch is padded.
    """

    def __init__(
        self, get: Callable[[int], np.ndarray], count: int, *, batches: int, size: int, group: int, first: int
    ) -> None:
        self._get, self._count = get, count
        self._batches, self._size, self._group, self._first = batches, size, group, first

    def __len__(self) -> int:
        return self._batches * self._size

    def __getitem__(self, i: int) -> np.ndarray | None:
        batch, row = divmod(i, self._size)
        number = batch * self._group + self._first + row
        return self._get(number) if number < self._count else None


def eval_batches(
    get: Callable[[int], np.ndarray],
    count: int,
    collate: Collate,
    *,
    device_batch_size: int,
    rank: int,
    world_size: int,
    max_batches: int | None,
) -> DataLoader:
    """Evaluation batches of this rank, of the `count` sequences that `get` gives by number."""
    group = device_batch_size * world_size
    batches = -(-count // group)
    if max_batches is not None:
        batches = min(batches, max_batches)
    size = device_batch_size
    rows = EvalRows(get, count, batches=batches, size=size, group=group, first=rank * size)
    return DataLoader(rows, batch_size=device_batch_size, shuffle=False, num_workers=0, collate_fn=collate)
