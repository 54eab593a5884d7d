"""Whether the checkpoint of any rank still moves, for the ranks that wait for it.

A rank that waits for another one's write waits in C, in a collective. Its watchdog asks the store at which the ranks
have met. Neither telling nor asking may hang, as both do where the network is cut: each is a thread of its own, and
there is never more than one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

ASK_S = 2.0  # seconds that an answer may take
KEY = "moe/writes"


class Writes:
    """store: of torch.distributed, the same for all ranks."""

    def __init__(self, store: Any):
        self.store = store
        self.count_of_all = 0
        self._calls: dict[str, threading.Thread] = {}

    def tell(self) -> None:
        """This rank's write moves."""
        self._call("tell", lambda: self.store.add(KEY, 1))

    def count(self) -> int:
        """How many times any rank has reported; as last known where no answer comes."""

        def ask() -> None:
            self.count_of_all = self.store.add(KEY, 0)

        self._call("ask", ask).join(ASK_S)
        return self.count_of_all

    def _call(self, name: str, call: Callable[[], object]) -> threading.Thread:
        def quietly() -> None:
            with suppress(RuntimeError):  # who serves the store is gone
                call()

        if name not in self._calls or not self._calls[name].is_alive():
            self._calls[name] = threading.Thread(target=quietly, name=f"writes: {name}", daemon=True)
            self._calls[name].start()
        return self._calls[name]
