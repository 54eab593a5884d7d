"""How shards come in time: Streaming's threads, changed where they cost much, hang or end an epoch early.

Two threads of stock's look at every sequence to have its shard fetched in time, also where all shards are here. They
wait for ever, or end the epoch early, when a shard is missing: here a shard that cannot be had raises in every worker
that needs it, with the file's name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep, time_ns
from typing import Any

from moe.common.errors import DataError
from moe.data.read.stock import TICK, StreamingDataset, _Iterator, _ShardState


def let_go(it: _Iterator) -> None:
    """Forget a pass that has ended. Stock keeps each until the process ends, with all the sample ids that it was given,
    as a call for Python's threads to make then: 39 bytes a sample in a process that reads without workers.
    """
    it.sample_ids = ()  # type: ignore[assignment]
    calls = getattr(threading, "_threading_atexits", [])
    for call in [call for call in calls if getattr(call.func, "__self__", None) is it]:
        calls.remove(call)


class FetchingDataset(StreamingDataset):
    """window: shards of each stripe and stream that are read at a time (order.py); None: stock's order."""

    window: int | None = None

    def __init__(self, **streaming: Any) -> None:
        super().__init__(**streaming)
        self._error: str | None = None
        self._all_local = all(stream.remote is None for stream in self.streams)

    def _path(self, shard_id: int) -> Path:
        shard: Any = self.shards[shard_id]
        return Path(shard.dirname, shard.split, shard.raw_data.basename)

    def _prepare_thread(self, it: _Iterator) -> None:
        """Fetches shards ahead, as stock does by every sequence; where all shards are here there is nothing to do."""
        if not self._all_local:
            fetch = super()._prepare_thread if self.window is None else self._fetch_ahead
            return self._noting_exit(fetch, it)
        it.prepare_index = it.total
        return it.on_exit()

    def _fetch_ahead(self, it: _Iterator) -> None:
        """Fetches the shards of the window, and the one that comes next, which has a block's time for it. Shards that
        are here are touched at each batch: none of them may be the coldest, which eviction takes, for any worker.
        """
        work: Any = it.sample_ids
        size = self.batch_size or 1
        for batch in range(it.total // size):
            while (batch - 1) * size > it.yield_index and not self._ends(it):
                sleep(TICK)
            if self._ends(it):
                break
            shards = work.shards_ahead(batch)
            missing = [shard for shard in shards if self._shard_states[shard] != _ShardState.LOCAL]
            for shard in set(shards) - set(missing):
                self._shard_access_times[shard] = time_ns()
            for shard in missing:
                if not self._ends(it):
                    self.prepare_shard(shard, False)
        it.prepare_index = it.total
        it.on_exit()

    def _ends(self, it: _Iterator) -> bool:
        return it.should_exit() or self._event.is_set()

    def _each_sample_id(self, it: _Iterator) -> Iterator[int]:
        """Stock's waits for each sequence's shard; where all are here there is nothing to wait for."""
        if self.window is None or not self._all_local:
            yield from super()._each_sample_id(it)
            return
        for sample_id in it.sample_ids:
            if it.should_exit():
                break
            it.yield_index += 1
            yield sample_id
        it.on_exit()

    def _ready_thread(self, it: _Iterator) -> None:
        if not self._all_local:
            return self._noting_exit(self._wait_for_each, it)
        it.ready_index = it.total
        return it.on_exit()

    def _wait_for_each(self, it: _Iterator) -> None:
        """Stock's, which asks for a shard once: one that was fetched and removed again before this thread looked, as in
        a cache that is too small, it would wait for without end.
        """
        while it.ready_index < it.total and not self._ends(it):
            if it.ready_index - it.yield_index > (self.predownload or 0):
                sleep(TICK)
                continue
            sample = it.sample_ids[it.ready_index]
            shard = self.spanner[sample][0] if sample != -1 else None
            while shard is not None and self._shard_states[shard] != _ShardState.LOCAL and not self._ends(it):
                if self._shard_states[shard] == _ShardState.REMOTE:
                    self.prepare_shard(shard, False)
                sleep(TICK)
            it.ready_index += 1
        it.on_exit()

    def _noting_exit(self, thread: Callable[[_Iterator], None], it: _Iterator) -> None:
        """Stock's thread, which notes its end only where nothing is raised: who waits for it would wait for ever."""
        try:
            thread(it)
        except BaseException:
            it.on_exit()
            raise

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Stock's, but a shard that cannot be had leaves no one waiting:

        its state says 'here', who looks for it raises.
        """
        remote = self.streams[int(self.stream_per_shard[shard_id])].remote
        if remote is None:
            if not self._path(shard_id).is_file():
                self._fail(f"{self._path(shard_id)}: missing; restore the file or convert again")
            return
        try:
            super().prepare_shard(shard_id, blocking)
        except Exception as error:
            self._shard_states[shard_id] = _ShardState.LOCAL
            reason = f"{type(error).__name__}: {error}"
            self._fail(f"{self._path(shard_id)}: cannot be fetched from {remote} ({reason})")

    def _fail(self, error: str) -> None:
        self._error = error
        raise DataError(error)

    def __iter__(self) -> Iterator[Any]:
        self._error = None
        if hasattr(self, "_iterator"):
            self._iterator.exit()  # of a pass that was not read to its end
            let_go(self._iterator)
        yield from super().__iter__()
        if hasattr(self, "_iterator"):
            let_go(self._iterator)
        # a background thread failed: stock would end the epoch here, as if all had been read
        if self._error is not None:
            raise DataError(self._error)
