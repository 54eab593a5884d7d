"""Which units a request needs, made and taken: all of them, or in order up to a limit."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice

import numpy as np

from moe.common.units import tell
from moe.data.text.ahead import Ahead
from moe.data.text.errors import BadFileError
from moe.data.text.files import Unit
from moe.data.write import pool
from moe.data.write.gather import Parts, Units
from moe.data.write.items import Item, items_of
from moe.data.write.progress import Progress
from moe.data.write.unit import Job, convert_unit
from moe.data.write.unit_store import UnitStore


class Limits:
    """Which units a limited run needs: those in order until the documents or tokens taken reach the limit."""

    def __init__(self, units: Sequence[Unit], store: UnitStore, job: Job, left_out: set[str]) -> None:
        self._units, self._store, self._left_out = units, store, left_out
        self.documents, self.tokens = job.max_documents, job.max_tokens
        self.used = array("Q")  # places of units
        self.cut: Unit | None = None  # the unit that is taken in part
        self._next = 0

    def advance(self) -> bool:
        """Take the units that are done; True once no further unit is needed."""
        while not self._is_reached() and self._next < len(self._units):
            unit = self._units[self._next]
            if unit.file.name not in self._left_out:
                done = self._store.done(unit)
                if done is None:
                    return False
                over = (self.documents is not None and done.documents > self.documents) or (
                    self.tokens is not None and done.tokens > self.tokens
                )
                if over or done.limited:
                    self.cut = unit
                else:
                    self.used.append(self._next)
                    self.documents = None if self.documents is None else self.documents - done.documents
                    self.tokens = None if self.tokens is None else self.tokens - done.tokens
            self._next += 1
        return self._is_reached()

    def _is_reached(self) -> bool:
        return self.cut is not None or self.documents == 0 or self.tokens == 0

    @property
    def exhausted(self) -> bool:
        return self._next == len(self._units)


def engine_function(engine: str) -> Callable[..., None]:
    """How items are run: `local` processes, or tasks of a `ray` cluster."""
    if engine == "local":
        return pool.run_units
    from moe.data.write import ray_engine

    return ray_engine.run_units


class _Work:
    """The items that are to be made of `units`, to which `ahead` may still add, and their part of all the work."""

    def __init__(
        self, units: Sequence[Unit], store: UnitStore, groups: np.ndarray, left_out: set[str], ahead: Ahead | None
    ) -> None:
        self._units, self._store, self._groups, self._left_out, self._ahead = units, store, groups, left_out, ahead
        self.behind = 0  # the weight of units that were done before

    def weight(self) -> int:
        """Of all units; an estimate as long as some are still to be planned."""
        known = sum(unit.weight for unit in self._units) if self._ahead is None else self._ahead.weight()
        return max(1, known)

    def items(self) -> Iterator[Item | None]:
        return items_of(self._as_planned(), self._groups, self._is_wanted)

    def _as_planned(self) -> Iterator[Unit | None]:
        at = 0
        while True:
            complete = self._ahead is None or self._ahead.is_complete()  # before the length is looked at
            if at < len(self._units):
                yield self._units[at]
                at += 1
                if self._ahead is not None:
                    self._ahead.taken = at
            elif complete:
                return
            else:
                yield None

    def _is_wanted(self, unit: Unit) -> bool:
        if unit.file.name in self._left_out:
            return False
        if self._store.done(unit) is None:
            return True
        self.behind += unit.weight
        return False


def run(
    job: Job,
    units: Sequence[Unit],
    store: UnitStore,
    *,
    groups: np.ndarray,
    engine: str,
    workers: int | None,
    left_out: set[str],
    ahead: Ahead | None = None,
    all_of_them: bool = False,
) -> list[BadFileError]:
    """Make every unit that is not done, up to the limit unless `all_of_them`. Returns the errors of files.

    groups: of files that may go into one item (items.groups_of). ahead: it still adds to `units`, while these are made.
    """
    unreadable: list[BadFileError] = []
    limited = not all_of_them and bool(job.max_documents or job.max_tokens)
    limits = Limits(units, store, job, left_out)
    if limited and limits.advance():
        return []
    work = _Work(units, store, groups, left_out, ahead)
    items, most, weight = work.items(), 1 << 30, work.weight()
    if ahead is None:
        begin = list(islice(items, workers or len(os.sched_getaffinity(0))))
        if not begin:
            return []
        items, most = chain(begin, items), len(begin)
    if done := sum(store.done(unit) is not None for unit in units):
        tell(f"resuming: {done} of {len(units)} units are done")
    if workers is None and engine == "local":  # starting a process takes as long as 32 MB of text
        workers = min(len(os.sched_getaffinity(0)), 1 + (weight - work.behind) // (32 << 20))
    workers = workers and min(workers, most)
    counter = pool.new_counter()

    def read() -> tuple[int, float, float]:
        tokens, converted, documents = pool.counted(counter)
        total = weight if ahead is None else work.weight()
        shares = [min(1.0, (work.behind + converted) / total)]
        if job.max_documents:
            shares.append(min(1.0, documents / job.max_documents))
        if job.max_tokens:
            shares.append(min(1.0, tokens / job.max_tokens))
        return tokens, max(shares), min(1.0, work.behind / total)

    def finished(item: Item, errors: list[BadFileError]) -> bool:
        failed = {error.file for error in errors}
        unreadable.extend(errors)
        left_out.update(failed)
        if made := tuple(unit for unit in item.units if unit.file.name not in failed):
            store.note_item(item.name, made) if len(item.units) > 1 else store.note(item.units[0])
        return not (limited and limits.advance())

    with Progress(read, token_bytes=np.dtype(job.dtype).itemsize):
        engine_function(engine)(job, items, store.folder, workers=workers, counter=counter, finished=finished)
    return unreadable


def limit_is_reached(job: Job, units: Sequence[Unit], store: UnitStore, left_out: set[str]) -> bool:
    """Whether the units that are done hold as much as the job's limits allow."""
    return Limits(units, store, job, left_out).advance()


def parts_of(job: Job, units: Sequence[Unit], store: UnitStore, left_out: set[str]) -> Units:
    """The units the dataset is made of, in order; the last one made again, shorter, where a limit falls inside it."""
    limits = Limits(units, store, job, left_out)
    if not limits.advance() and not limits.exhausted:
        raise RuntimeError("a unit is neither done nor skipped")
    parts: Units = Parts(store, units, limits.used)
    if limits.cut is not None and limits.documents != 0 and limits.tokens != 0:
        cut = replace(job, max_documents=limits.documents, max_tokens=limits.tokens)
        if cut == job:
            return [*parts, (store, limits.cut)]
        aside = UnitStore(store.folder.beside(f"-cut-{limits.documents}-{limits.tokens}"))
        convert_unit(cut, limits.cut, aside.folder, lambda *_: None)
        return [*parts, (aside, limits.cut)]
    return parts
