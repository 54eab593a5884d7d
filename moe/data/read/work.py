"""What one worker of one rank reads in an epoch, worked out as it is read.

Batch k of a worker is global batch `first + worker + k * workers`, as the DataLoader takes batches from its workers in
turn; of its B rows the rank has `rank * B / ranks` and those after it. Row r belongs to stripe r // (B / C).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock

import numpy as np

from moe.data.read.order import Order

CHUNK = 4096  # sequences that are worked out at a time


@dataclass(frozen=True)
class Place:
    """Who reads: this worker of this rank, in batches of `batch_size` rows."""

    batch_size: int
    rank: int = 0
    ranks: int = 1
    worker: int = 0
    workers: int = 1


class Work:
    """Streaming's sample ids of an epoch behind its first `done`, in the place of the array that it makes."""

    def __init__(self, order: Order, epoch: int, done: int, place: Place) -> None:
        batch = place.batch_size * place.ranks
        assert done % batch == 0 and batch % order.stripes == 0, (done, batch, order.stripes)
        self._order, self._epoch, self._place = order, epoch, place
        self._batches = range(done // batch + place.worker, order.length // batch, place.workers)
        self._rows = batch // order.stripes  # that a global batch holds of each stripe
        self._chunks: dict[int, array[int]] = {}  # threads look at different places; a list takes 39 bytes a sample
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._batches) * self._place.batch_size

    def __getitem__(self, number: int) -> int:
        return self._chunk(number // CHUNK)[number % CHUNK]

    def __iter__(self) -> Iterator[int]:
        for chunk in range(-(-len(self) // CHUNK)):
            yield from self._chunk(chunk)

    def _chunk(self, chunk: int) -> array[int]:
        found = self._chunks.get(chunk)
        if found is None:
            numbers = np.arange(chunk * CHUNK, min(len(self), (chunk + 1) * CHUNK))
            samples = self._order.samples(self._epoch, *self._positions(numbers))
            found = array("q", samples.astype(np.int64).tobytes())
            with self._lock:
                if len(self._chunks) > 3:
                    self._chunks.pop(min(self._chunks))
                self._chunks[chunk] = found
        return found

    def shards_ahead(self, batch: int) -> list[int]:
        """The shards of this worker's batch number `batch`, then those that will be needed next."""
        first = batch * self._place.batch_size
        numbers = np.arange(first, first + self._place.batch_size)
        return self._order.shards_ahead(self._epoch, *self._positions(numbers))

    def _positions(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(stripe, position in it) of this worker's sequences by number."""
        batch, row = np.divmod(numbers, self._place.batch_size)
        batch = self._batches.start + batch * self._batches.step
        stripe, row = np.divmod(row + self._place.rank * self._place.batch_size, self._rows)
        return stripe, batch * self._rows + row
