"""A loader that knows how long its user has waited for batches.

Measured here, around the loader's own `next`: between a trainer's events before and after it, Composer also adds up
over ranks and reads the sum on the host, which on a GPU waits for whatever the device still has to do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


class WaitingLoader(DataLoader):
    """waited: seconds in all for which a batch, or an epoch's first or end, has been waited for."""

    waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        start = time.monotonic()
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.monotonic() - start
            yield batch
            start = time.monotonic()
