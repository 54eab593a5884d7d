"""Which units a request needs, made and taken: all of them, or in order up to a limit."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from moe.common.units import tell
from moe.data.text.errors import BadFileError
from moe.data.text.files import Unit
from moe.data.write import pool
from moe.data.write.progress import Progress
from moe.data.write.unit import Job, convert_unit
from moe.data.write.unit_store import UnitStore, totals


class Limits:
    """Which units a limited run needs: those in order until the documents or tokens taken reach the limit."""

    def __init__(self, units: list[Unit], store: UnitStore, job: Job, left_out: set[str]) -> None:
        self._units, self._store, self._left_out = units, store, left_out
        self.documents, self.tokens = job.max_documents, job.max_tokens
        self.used: list[Unit] = []
        self.cut: Unit | None = None  # the unit that is taken in part
        self._next = 0

    def advance(self) -> bool:
        """Take the units that are done; True once no further unit is needed."""
        while self.cut is None and self._next < len(self._units):
            unit = self._units[self._next]
            if unit.file.name not in self._left_out:
                done = self._store.done(unit)
                if done is None:
                    return False
                documents, tokens = totals(done)
                over = (self.documents is not None and documents > self.documents) or (
                    self.tokens is not None and tokens > self.tokens
                )
                if over or done["limited"]:
                    self.cut = unit
                else:
                    self.used.append(unit)
                    self.documents = None if self.documents is None else self.documents - documents
                    self.tokens = None if self.tokens is None else self.tokens - tokens
            self._next += 1
        return self.cut is not None or self.documents == 0 or self.tokens == 0

    @property
    def exhausted(self) -> bool:
        return self._next == len(self._units)


def engine_function(engine: str) -> Callable[..., None]:
    """How units are run: `local` processes, or tasks of a `ray` cluster."""
    if engine == "local":
        return pool.run_units
    from moe.data.write import ray_engine

    return ray_engine.run_units


def run(
    job: Job,
    units: list[Unit],
    store: UnitStore,
    *,
    engine: str,
    workers: int | None,
    left_out: set[str],
    all_of_them: bool = False,
) -> list[BadFileError]:
    """Make every unit that is not done, up to the limit unless `all_of_them`. Returns the errors of files."""
    faults: list[BadFileError] = []
    pending = [unit for unit in units if unit.file.name not in left_out and store.done(unit) is None]
    limits = Limits(units, store, job, left_out)
    if not pending or (limits.advance() and not all_of_them):
        return []
    done = sum(store.done(unit) is not None for unit in units)
    if done:
        tell(f"resuming: {done} of {len(units)} units are done")
    weight = sum(unit.weight for unit in pending)
    if workers is None and engine == "local":  # starting a process takes as long as 32 MB of text
        workers = min(len(os.sched_getaffinity(0)), 1 + weight // (32 << 20))
    workers = workers and min(workers, len(pending))
    counter = pool.new_counter()
    total = max(1, sum(unit.weight for unit in units))
    before = total - weight

    def read() -> tuple[int, float, float]:
        tokens, converted, documents = pool.counted(counter)
        shares = [min(1.0, (before + converted) / total)]
        if job.max_documents:
            shares.append(min(1.0, documents / job.max_documents))
        if job.max_tokens:
            shares.append(min(1.0, tokens / job.max_tokens))
        return tokens, max(shares), before / total

    def finished(unit: Unit, fault: BadFileError | None) -> bool:
        if fault is None:
            store.note(unit)
        else:
            faults.append(fault)
            left_out.add(unit.file.name)
        return all_of_them or not limits.advance()

    with Progress(read, token_bytes=np.dtype(job.dtype).itemsize):
        engine_function(engine)(job, pending, store.folder, workers=workers, counter=counter, finished=finished)
    return faults


def limit_is_reached(job: Job, units: list[Unit], store: UnitStore, left_out: set[str]) -> bool:
    """Whether the units that are done hold as much as the job's limits allow."""
    return Limits(units, store, job, left_out).advance()


def parts_of(job: Job, units: list[Unit], store: UnitStore, left_out: set[str]) -> list[tuple[UnitStore, Unit]]:
    """The units the dataset is made of, in order; the last one made again, shorter, where a limit falls inside it."""
    limits = Limits([u for u in units if u.file.name not in left_out], store, job, left_out)
    if not limits.advance() and not limits.exhausted:
        raise RuntimeError("a unit is neither done nor skipped")
    parts = [(store, unit) for unit in limits.used]
    if limits.cut is not None and limits.documents != 0 and limits.tokens != 0:
        cut = replace(job, max_documents=limits.documents, max_tokens=limits.tokens)
        if cut == job:
            return [*parts, (store, limits.cut)]
        aside = UnitStore(store.folder.beside(f"-cut-{limits.documents}-{limits.tokens}"))
        convert_unit(cut, limits.cut, aside.folder, lambda *_: None)
        parts.append((aside, limits.cut))
    return parts
