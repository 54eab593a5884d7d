"""A checkpoint whose bytes move is progress: the watchdog ended a run that waited for a long save."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.distributed

from moe.common.moved import MOVED
from moe.common.s3 import RemoteFolder
from moe.train.callbacks.progress import Progress
from moe.train.checkpointing import files
from moe.train.checkpointing.checkpoints import read_checkpoint, write_checkpoint
from moe.train.distributed import writes
from moe.train.distributed.writes import Writes
from tests.ranks import on_ranks
from tests.unit.train.savers import idle_saver

STALL = 0.8
LONG = 2.4  # of a write, in seconds


def slow(seconds: float) -> Iterator[bytes]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)
        yield b"a piece"


def watchdog(folder: Path, rank: int, end: Callable[[int], None], shared: Writes | None = None) -> Progress:
    found = Progress(STALL, stacks=folder / "stacks", rank=rank, note=lambda state: None, end=end, writes=shared)
    found._print = found._write = lambda text: None  # type: ignore[method-assign]
    return found


def test_a_save_may_take_longer_than_stall_timeout(tmp_path: Path) -> None:
    ended = threading.Event()
    dog = watchdog(tmp_path, 0, lambda code: ended.set())
    saver = idle_saver(tmp_path)
    saver._thread = threading.Thread(target=partial(files.write_file, tmp_path / "file", slow(LONG)))
    saver._thread.start()
    dog.watch()
    saver.join()
    assert not ended.is_set()
    assert ended.wait(10 * STALL), "nothing moves any more"


def waits(folder: Path, rank: int) -> None:
    """Rank 0 writes, and rank 1 waits for it in a collective, as the others do at a run's last save."""
    ended: list[float] = []
    shared = Writes(torch.distributed.distributed_c10d._get_default_store())
    dog = watchdog(folder, rank, lambda code: ended.append(time.monotonic()), shared)
    torch.distributed.barrier()
    dog.watch()
    if rank == 0:
        files.write_file(folder / "file", slow(LONG))
    torch.distributed.barrier()
    assert not ended, f"rank {rank}"
    written = time.monotonic()
    while not ended:
        time.sleep(0.05)
        assert time.monotonic() < written + 10 * STALL, "no rank writes any more"


def test_a_rank_that_waits_for_the_write_of_another_is_not_stalled(tmp_path: Path) -> None:
    on_ranks(2, partial(waits, tmp_path))


def test_a_store_that_does_not_answer_keeps_nobody(tmp_path: Path, monkeypatch) -> None:
    """The network is cut: the run ends as before, after stall_timeout."""
    monkeypatch.setattr(writes, "ASK_S", 0.2)
    hangs, ended = threading.Event(), threading.Event()

    class Store:
        def add(self, key: str, count: int) -> int:
            hangs.wait(30)
            raise RuntimeError("Connection reset by peer")

    shared = Writes(Store())
    began = time.monotonic()
    shared.tell()
    watchdog(tmp_path, 0, lambda code: ended.set(), shared).watch()
    assert ended.wait(10) and time.monotonic() - began < 5 * STALL
    assert sum(thread.name.startswith("writes: ") for thread in threading.enumerate()) == 2
    hangs.set()


def test_what_is_written_hashed_and_sent_is_seen_and_reaches_the_disk_as_it_comes(
    tmp_path: Path, bucket: str, monkeypatch
) -> None:
    synced: list[int] = []
    plain = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), plain(descriptor))[1])
    monkeypatch.setattr(files, "SYNC_EVERY", 1 << 20)
    monkeypatch.setattr(files, "PIECE", 1 << 18)
    state = {"weight": torch.arange(1 << 20, dtype=torch.int32)}
    manifest = {"tokens": 5, "config": {}, "data": "d", "eos_id": 0, "vocab_size": 97, "tokenizer": None}
    before = MOVED.bytes
    folder = write_checkpoint(tmp_path, 1, {"state": {"model": state}}, manifest)
    size = (folder / "state.pt").stat().st_size
    assert size > 4 << 20 and 2 * size <= MOVED.bytes - before < 2.1 * size, "written, then read for its hash"
    assert len(synced) > 4
    assert torch.equal(torch.load(read_checkpoint(folder).state_file)["state"]["model"]["weight"], state["weight"])
    before = MOVED.bytes
    RemoteFolder(f"{bucket}/run").upload(folder / "state.pt", "state.pt")
    assert MOVED.bytes - before >= size
