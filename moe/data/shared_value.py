"""A value for spawned processes, in shared memory.

`Process.start` writes what it is given into a pipe that only the new process reads: of more than the pipe holds
(64 kB; a tokenizer has megabytes) it would wait for ever where that process is killed before it has read.
"""

from __future__ import annotations

import multiprocessing
import pickle
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SharedValue(Generic[T]):
    """`value`, pickled once; `get()` makes a copy of it in any process that this object is given to at its start."""

    def __init__(self, value: T) -> None:
        pickled = pickle.dumps(value)
        self._bytes: Any = multiprocessing.get_context("spawn").RawArray("c", len(pickled))
        self._bytes.raw = pickled

    def get(self) -> T:
        return pickle.loads(self._bytes.raw)
