"""StreamingDataset over blocks of tokens: read through one memmap per shard, in an order that needs no array.

The order is that of order.py, or stock's, with stock's memory: a run that was begun with it keeps it.
Streams, the cache, eviction and the position are stock's. Of its constructor the Spanner is replaced, which holds eight
bytes a sequence; `_get_work` gives an object that works out what it is asked for.
Stock opens the file for every sequence and copies twice. What fetches shards in time is in fetching.py.
A map holds a descriptor and page tables: maps.py keeps a few of a process's, however many shards there are.
Reading a map behind the end of its file kills the process (SIGBUS), so the sizes of open shards are looked at again.
The position to resume from stays in the object, which workers inherit. Stock passes it through shared memory by name:
what a killed run left under that name is taken for it, and where another process clears it, the epoch begins anew.
"""

from __future__ import annotations

from contextlib import suppress
from time import monotonic, time_ns
from typing import Any

import numpy as np

from moe.common.errors import DataError, InputError
from moe.common.units import say
from moe.data.read.fetching import FetchingDataset
from moe.data.read.maps import Maps
from moe.data.read.order import NAME, Order, window_of
from moe.data.read.spans import small_spanner
from moe.data.read.stock import World
from moe.data.read.verify import ENCODING
from moe.data.read.work import Place, Work

LOOK_AGAIN = 0.1  # seconds between two looks at the size of a shard that is read


class TokenDataset(FetchingDataset):
    """Items are token ids [S], uint16 or uint32. Other keywords than the named ones are StreamingDataset's.

    seq_len: S, which the shards must have. vocab_size: an id at or above it raises. stock_order: use `shuffle_algo`.
    """

    def __init__(self, *, seq_len: int, vocab_size: int, stock_order: bool = False, **streaming: Any) -> None:
        try:
            with small_spanner():
                super().__init__(**streaming)
        except ValueError as error:
            if streaming.get("cache_limit") is None:
                raise
            raise InputError(
                f"train_data.cache_limit ({streaming['cache_limit']}): {str(error).rstrip('.')}: it must be more than "
                "the indexes and four times the largest shard, 268 MB for shards of this converter"
            ) from None
        if self.cache_limit is not None and any(stream.remote is None for stream in self.streams):
            raise InputError("cache_limit would delete shards that have no other copy; give each stream a remote")
        self._set_window(None if stock_order else self._window())
        self._position: dict[str, Any] | None = None
        self.seq_len, self.vocab_size = seq_len, vocab_size
        self.shards: list[Any]  # readers of MDS shards
        self._maps = Maps()
        kinds = {tuple(shard.column_encodings): i for i, shard in enumerate(self.shards)}
        for (encoding, *others), shard_id in kinds.items():
            folder, match = self._path(shard_id).parent, ENCODING.fullmatch(encoding)
            if match is None or others:
                raise InputError(f"{folder}: columns {encoding} are not tokens; convert with convert/fineweb_to_mds.py")
            if int(match.group(2)) != seq_len:
                raise InputError(
                    f"{folder}: made with --seq-len {match.group(2)}, max_seq_len is {seq_len}; "
                    "set max_seq_len to it, or convert again"
                )

    def __getstate__(self) -> dict[str, Any]:
        # maps are per process: a spawned worker opens its own
        return {**self.__dict__, "_maps": Maps()}

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Stock's position, and the order that it is a position in; without `order` it is stock's."""
        order = {} if self.window is None else {"order": {"name": NAME, "window": self.window}}
        return {**super().state_dict(num_samples, from_beginning), **order}

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Where to resume, as `state_dict` gives it. Call it before the first worker starts.

        Raises InputError for an order that is not known here.
        """
        order = obj.get("order", {"name": None, "window": None})
        if order["name"] not in (None, NAME):
            raise InputError(
                f"the checkpoint's order of sequences ({order['name']}) is not known to this version, "
                f"which has {NAME}; resume with the version that wrote it"
            )
        if self.window is not None and order["name"] is None:
            say("this run keeps the order of sequences that it was started with (py1e): memory grows with the data")
        self._set_window(order["window"])
        self._position = dict(obj)

    def _resume(self, world: World, epoch: int) -> tuple[int, int]:
        """The epoch, and the sequences of it that are done, at its start."""
        at = self._position
        goes_on = at is not None and at["epoch"] >= epoch
        if at is not None and goes_on:
            self.num_canonical_nodes, self.shuffle_seed = at["num_canonical_nodes"], at["shuffle_seed"]
            self.initial_physical_nodes = at.get("initial_physical_nodes")
        self.num_canonical_nodes = self.num_canonical_nodes or world.num_nodes
        self._set_shuffle_block_size(world)
        return (at["epoch"], at["sample_in_epoch"]) if at is not None and goes_on else (epoch, 0)

    def _set_window(self, window: int | None) -> None:
        """In shards; None: stock's order. With a window the shard that comes next is fetched a block ahead, and to look
        at more than a batch would go beyond it, where many workers read.
        """
        self.window = window
        self.predownload = (self.batch_size or 1) * (8 if window is None else 1)
        self._check_cache()

    def _fit(self) -> int | None:
        """Shards that the cache holds; None where it has no limit."""
        if not self.cache_limit:
            return None
        room = int(self.cache_limit) - sum(stream.get_index_size() for stream in self.streams)
        return int(room // self.max_shard_size_across_all_streams)

    def _check_cache(self) -> None:
        """Reports a cache that is too small for the window, which a run that resumes brings with it."""
        fit, here = self._fit(), (self.num_canonical_nodes or 1) // self._unique_rank_world.num_nodes or 1
        if fit is not None and self.window is not None and fit < (self.window + 2) * here * self.num_streams:
            need = f"and {here} stripes of {self.num_streams} streams need {self.window + 2} each"
            say(f"warning: train_data.cache_limit holds {fit} shards, {need}; raise it, or some are fetched again")

    def _window(self) -> int:
        return window_of(self.num_canonical_nodes or 1, self.num_streams, self._fit())

    def _get_work(self, epoch: int, sample_in_epoch: int) -> Any:
        """What this worker reads, as Streaming's sample ids. Stock makes and shares an array of the full epoch."""
        if self.window is None:
            return super()._get_work(epoch, sample_in_epoch)
        assert self.batch_size is not None
        world = self._parallel_worker_world
        edges = np.cumsum(self.shards_per_stream)[:-1]
        order = Order(
            np.split(self.samples_per_shard, edges),
            [int(stream.choose) for stream in self.streams],
            seed=self.shuffle_seed,
            stripes=self.num_canonical_nodes or 1,
            window=self.window,
            shuffle=self.shuffle,
        )
        place = Place(self.batch_size, world.rank, world.num_ranks, world.worker_of_rank, world.workers_per_rank)
        return Work(order, epoch, sample_in_epoch, place)

    def _open(self, shard_id: int) -> np.ndarray:
        """Rows [n, S] of a local shard, mapped. Raises FileNotFoundError, or DataError when its size is wrong."""
        shard, path = self.shards[shard_id], self._path(shard_id)
        self._check_size(shard_id)
        match = ENCODING.fullmatch(shard.column_encodings[0])
        assert match is not None
        held, start = np.fromfile(path, np.uint32, 2).tolist()
        if shard.samples > held:
            raise DataError(
                f"{path}: holds {held} sequences, index.json says {shard.samples}; restore the file or convert again"
            )
        rows = np.memmap(path, match.group(1), "r", start, (shard.samples, self.seq_len))
        return np.asarray(rows)  # memmap's own indexing costs 4 us a sequence

    def _check_size(self, shard_id: int) -> None:
        path, listed = self._path(shard_id), self.shards[shard_id].raw_data.bytes
        size = path.stat().st_size
        if size != listed:
            raise DataError(f"{path}: {size} bytes, index.json says {listed}; restore the file or convert again")

    def get_item(self, sample_id: int, retry: int = 7) -> np.ndarray:
        shard_id, row = self.spanner[sample_id]
        held = self._maps.open.get(shard_id)
        if held is None:
            rows = self._fetched(shard_id, retry)
        else:
            rows, held.used = held.rows, monotonic()
            if held.used - held.looked > LOOK_AGAIN:
                with suppress(FileNotFoundError):  # the map keeps what was removed
                    self._check_size(shard_id)
                held.looked = held.used
        tokens = np.array(rows[row])
        if (largest := int(tokens.max())) >= self.vocab_size:
            raise DataError(
                f"{self._path(shard_id)}: token id {largest} in sequence {row}, the vocabulary has {self.vocab_size}; "
                "the shard is damaged (moe inspect verifies it) or was made with another tokenizer"
            )
        return tokens

    def _fetched(self, shard_id: int, retry: int) -> np.ndarray:
        """Rows of a shard that was not open, fetched where it is not here."""
        for _ in range(1 + retry):
            try:
                rows = self._open(shard_id)
                break
            except FileNotFoundError:
                self.prepare_shard(shard_id)
        else:
            raise DataError(f"{self._path(shard_id)}: evicted {retry + 1} times before it was read; raise cache_limit")
        if self.cache_limit is None:  # a map would keep an evicted shard's bytes on the disk
            self._maps.add(shard_id, rows)
        else:
            self._shard_access_times[shard_id] = time_ns()
        return rows
