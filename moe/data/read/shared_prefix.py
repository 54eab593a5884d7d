"""The number that a dataset's shared memory goes by, agreed between the ranks of a machine.

Stock lets each rank look for the first free number by itself: where another run of the machine takes it in between,
the leader fails and the others wait for it, or they find that run's memory ("does not match local leader").
Here the leader takes a number, tells it to its ranks, and where one leader finds it taken all try again.

In its search Streaming opens the memory of all datasets of the machine and keeps it open to its end, six files for
each. Here what was only looked at is closed again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

from moe.data.read.stock import LOCALS, SHM_TO_CLEAN, SharedMemory, World, _get_path, stock_prefix
from moe.data.read.stock import stock_dataset as stock

TRIES = 30
T = TypeVar("T")


def agreed_prefix(locals_: list[str], remotes: list[str | None], world: World, retry: int = 100) -> tuple[int, Any]:
    """As streaming's get_shm_prefix: the number, and the memory that holds the folders. Call it on all ranks.

    Raises:
        ValueError: on all ranks: a folder with a remote is in use by another dataset.
    """
    stock_prefix._check_self(locals_)
    for attempt in range(1, TRIES + 1):
        number, memory, error = _take(locals_, remotes, retry) if world.is_local_leader else (None, None, None)
        answers: list[Any] = [None] * world.num_ranks
        dist.all_gather_object(answers, (number, error))
        if error := next((found for _, found in answers if found is not None), None):
            raise ValueError(error)
        leaders = answers[:: world.ranks_per_node]
        if all(taken is not None for taken, _ in leaders):
            theirs = leaders[world.node][0]
            return theirs, memory if world.is_local_leader else SharedMemory(_get_path(theirs, LOCALS), False)
        if memory is not None:
            memory.cleanup()
        time.sleep(random.SystemRandom().uniform(0.02, 0.05 * attempt) if world.is_local_leader else 0.0)
    raise ValueError(f"no number for shared memory was free in {TRIES} tries: other runs start on this machine")


def _take(locals_: list[str], remotes: list[str | None], retry: int) -> tuple[int | None, Any, str | None]:
    """A number and its memory; (None, None, None) where another process was faster; the error where there is none."""
    try:
        number = max(stock_prefix._check_and_find_retrying(locals_, remotes, name, retry) for name in SHM_TO_CLEAN)
    except ValueError as error:
        return None, None, str(error)
    content = stock_prefix._pack_locals(locals_, number)
    try:
        memory = SharedMemory(_get_path(number, LOCALS), True, len(content))
    except FileExistsError:
        return None, None, None
    memory.buf[: len(content)] = content
    return number, memory, None


def looking(find: Callable[..., int]) -> Callable[..., int]:
    """`find` (streaming's _check_and_find_retrying), without what it leaves open."""

    def found(*given: Any, **named: Any) -> int:
        seen: list[SharedMemory] = []

        def look(name: str, create: bool) -> SharedMemory:
            seen.append(SharedMemory(name, create, auto_cleanup=False))
            return seen[-1]

        theirs, stock_prefix.SharedMemory = stock_prefix.SharedMemory, look  # type: ignore[assignment, misc]
        try:
            return find(*given, **named)
        finally:
            stock_prefix.SharedMemory = theirs  # type: ignore[misc]
            for memory in seen:
                memory.shm.close()

    return found


@contextmanager
def one_prefix() -> Iterator[None]:
    """Within it a dataset gets its number so."""
    theirs, find = stock.get_shm_prefix, stock_prefix._check_and_find_retrying
    stock_prefix._check_and_find_retrying = looking(find)
    if dist.is_initialized() and dist.get_world_size() > 1:
        stock.get_shm_prefix = agreed_prefix  # type: ignore[assignment]
    try:
        yield
    finally:
        stock.get_shm_prefix, stock_prefix._check_and_find_retrying = theirs, find


def with_a_free_number(make: Callable[[], T]) -> T:
    """What `make` makes, a StreamingDataset. Streaming looks for a free number and takes it later, so two processes
    that start at the same moment can choose the same one: the one that comes second tries again.
    """
    for wait in range(1, TRIES):
        try:
            return make()
        except FileExistsError:
            time.sleep(random.SystemRandom().uniform(0.02, 0.05 * wait))
    return make()
