"""Training on text that is tokenised as it is read: the loader, and the position in it.

- Ranks own lanes (see lanes.py): rank r of R has lanes r, r + R, ..., so R must divide them; its workers share these.
  Global batch i holds sequences [i*G, (i+1)*G) whatever the ranks and workers.
- The workers send blocks lane by lane; here they are put into order and made into batches, so that the position of
  every lane is known behind each batch. There is no end: epochs follow each other inside the lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from moe.common.errors import DataError, InputError
from moe.data.read.batches import Collate, eval_batches, start_worker
from moe.data.read.lanes import START, Position, TextJob, lane_rows, validation_rows
from moe.data.read.stock import World
from moe.data.read.text_plan import TextPlan, in_keys
from moe.data.read.waiting import WaitingLoader
from moe.data.shared_value import SharedValue
from moe.data.text.encoders import settle_process

CHUNK_ROWS = 64  # blocks a worker sends at once


class LaneReader(IterableDataset):
    """What one worker does: items are (blocks [k, lanes, S], positions behind them [k, lanes, 4]) of its lanes.

    `lanes` are the rank's, in order; the first `ahead` of them are a block ahead of the others.
    """

    def __init__(self, job: TextJob, lanes: list[int], positions: np.ndarray, ahead: int, chunk: int) -> None:
        self.job = SharedValue(job)
        self.lanes, self.positions, self.ahead, self.chunk = lanes, positions, ahead, chunk

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        try:
            yield from self._chunks()
        except InputError as error:  # a file or the hub: nothing to fix in the config
            raise DataError(f"train_data.text: {in_keys(error)}") from None

    def _chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        info = get_worker_info()
        if info is not None:
            settle_process()
        job = self.job.get()
        which = range(info.id, len(self.lanes), info.num_workers) if info is not None else range(len(self.lanes))
        rows = []
        for i in which:
            position: Position = tuple(self.positions[self.lanes[i]].tolist())
            rows.append(lane_rows(job, self.lanes[i], position))
        first = True
        while True:
            blocks = np.zeros((self.chunk, len(rows), job.seq_len), job.dtype)
            behind = np.zeros((self.chunk, len(rows), len(START)), np.int64)
            for k in range(self.chunk):
                for j, lane in enumerate(rows):
                    if not (first and which[j] < self.ahead):
                        blocks[k, j], behind[k, j] = next(lane)
                first = False
            yield blocks, behind


class TextRows(IterableDataset):
    """Blocks [S] of this rank, in order, without end; `state_dict`/`load_state_dict` hold the position of all lanes.

    Where there are several ranks, `share` has to be called behind each batch.
    """

    def __init__(self, job: TextJob, *, device_batch_size: int, num_workers: int) -> None:
        world = World.detect()
        if job.lanes % world.num_ranks:
            raise InputError(f"train_data.text.lanes ({job.lanes}) is not divisible by {world.num_ranks} ranks")
        self.job, self.batch, self.ranks = job, device_batch_size, world.num_ranks
        self.lanes = list(range(world.rank, job.lanes, world.num_ranks))
        self.num_workers = min(num_workers, len(self.lanes))
        self._samples = 0  # of all ranks, at the newest of the positions
        self._positions = {0: torch.tensor([START] * job.lanes)}  # by sequences: behind the last batch, and before it

    def __iter__(self) -> Iterator[np.ndarray]:
        start = self._positions[self._samples].cpu().numpy()
        ahead = self._samples // self.ranks % len(self.lanes)
        chunk = max(1, CHUNK_ROWS * max(1, self.num_workers) // len(self.lanes))
        reader = LaneReader(self.job, self.lanes, start, ahead, chunk)
        loader = DataLoader(
            reader,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            worker_init_fn=start_worker,
            # fastokens' threads, which the check of the encoders has started here, are not in a forked worker
            multiprocessing_context="spawn" if self.num_workers and self.job.encoder == "fastokens" else None,
        )
        now = np.zeros_like(start)  # of this rank's lanes; nothing of the others'
        now[self.lanes] = start[self.lanes]
        count = 0
        for lane, block, position in self._in_order(loader, ahead, chunk):
            now[lane] = position
            count += 1
            if count == self.batch:
                count, before = 0, self._samples
                self._samples += self.batch * self.ranks
                self._positions = {before: self._positions[before], self._samples: torch.from_numpy(now.copy())}
            yield block

    def _in_order(self, loader: DataLoader, ahead: int, chunk: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        shares = max(1, self.num_workers)
        items = iter(loader)
        blocks = np.empty((chunk, len(self.lanes), self.job.seq_len), self.job.dtype)
        behind = np.empty((chunk, len(self.lanes), len(START)), np.int64)
        while True:
            for share in range(shares):
                blocks[:, share::shares], behind[:, share::shares] = next(items)
            for k in range(chunk):
                for i in range(ahead, len(self.lanes)):
                    yield self.lanes[i], blocks[k, i].copy(), behind[k, i]
                ahead = 0

    def share(self, add_over_ranks: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Completes the newest positions with those of the other ranks' lanes."""
        self._positions[self._samples] = add_over_ranks(self._positions[self._samples])

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """The position behind `num_samples` sequences of all ranks: the newest batch's, or that of the one before."""
        assert from_beginning and num_samples in self._positions, (num_samples, list(self._positions))
        return {"epoch": 0, "sample_in_epoch": num_samples, "lanes": self._positions[num_samples].tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._samples = state["sample_in_epoch"]
        self._positions = {self._samples: torch.tensor(state["lanes"])}


def _as_it_is(item: Any) -> Any:
    return item


def build_text_loader(
    job: TextJob, *, device_batch_size: int, num_workers: int, document_mask: bool
) -> tuple[WaitingLoader, TextRows]:
    """Training batches of `device_batch_size` rows for this rank, without end, and the rows that hold the position."""
    rows = TextRows(job, device_batch_size=device_batch_size, num_workers=num_workers)
    loader = WaitingLoader(
        rows,
        batch_size=device_batch_size,
        collate_fn=Collate(seq_len=job.seq_len, eos_id=job.eos_id, document_mask=document_mask),
        pin_memory=torch.cuda.is_available(),
    )
    return loader, rows


def build_text_eval_loader(
    plan: TextPlan,
    *,
    document_mask: bool,
    device_batch_size: int,
    rank: int,
    world_size: int,
    max_batches: int | None,
) -> DataLoader:
    """Evaluation batches of this rank, of the documents held out of training, read once and kept in memory.

    Raises InputError where they hold no block, or a file cannot be read.
    """
    limit = None if max_batches is None else max_batches * device_batch_size * world_size
    samples = validation_rows(plan.job, plan.units, limit)
    if not len(samples):
        raise InputError(
            f"eval_data.text: the validation documents hold less than one block of {plan.job.seq_len} tokens; "
            "raise train_data.text.val_fraction, or set eval_data=null"
        )
    return eval_batches(
        samples.__getitem__,
        len(samples),
        Collate(seq_len=plan.job.seq_len, eos_id=plan.job.eos_id, document_mask=document_mask),
        device_batch_size=device_batch_size,
        rank=rank,
        world_size=world_size,
        max_batches=max_batches,
    )
