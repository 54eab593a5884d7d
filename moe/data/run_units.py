"""Which units a request needs, made and taken: all of them, or in order up to a limit."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from moe.data import pool
from moe.data.errors import BadFileError
from moe.data.progress import Progress
from moe.data.sources import Unit
from moe.data.unit import Job, convert_unit, read_done, totals


class Limits:
    """Which units a limited run needs: those in order until the documents or tokens taken reach the limit."""

    def __init__(self, units: list[Unit], folder: Path, job: Job, left_out: set[str]) -> None:
        self._units, self._folder, self._job, self._left_out = units, folder, job, left_out
        self.documents, self.tokens = job.max_documents, job.max_tokens
        self.used: list[Unit] = []
        self.cut: Unit | None = None  # the unit that is taken in part
        self._next = 0

    def advance(self) -> bool:
        """Take the units that are done; True once no further unit is needed."""
        while self.cut is None and self._next < len(self._units):
            unit = self._units[self._next]
            if unit.file.name not in self._left_out:
                done = read_done(self._folder, unit)
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


def run(
    job: Job, units: list[Unit], folder: Path, *, workers: int | None, left_out: set[str], all_of_them: bool = False
) -> list[BadFileError]:
    """Make every unit that is not done, up to the limit unless `all_of_them`. Returns the faults of files."""
    faults: list[BadFileError] = []
    pending = [unit for unit in units if unit.file.name not in left_out and read_done(folder, unit) is None]
    limits = Limits(units, folder, job, left_out)
    if not pending or (limits.advance() and not all_of_them):
        return []
    done = sum(read_done(folder, unit) is not None for unit in units)
    if done:
        print(f"resuming: {done} of {len(units)} units are done", flush=True)
    weight = sum(unit.weight for unit in pending)
    if workers is None:  # starting a process takes as long as 32 MB of text
        workers = min(len(os.sched_getaffinity(0)), 1 + weight // (32 << 20))
    counter = pool.new_counter()
    total = max(1, sum(unit.weight for unit in units))
    before = total - weight

    def read() -> tuple[int, float, float]:
        shares = [min(1.0, (before + counter[1]) / total)]
        if job.max_documents:
            shares.append(min(1.0, counter[2] / job.max_documents))
        if job.max_tokens:
            shares.append(min(1.0, counter[0] / job.max_tokens))
        return counter[0], max(shares), before / total

    def finished(unit: Unit, fault: BadFileError | None) -> bool:
        if fault is not None:
            faults.append(fault)
            left_out.add(unit.file.name)
        return all_of_them or not limits.advance()

    with Progress(read, token_bytes=np.dtype(job.dtype).itemsize):
        pool.run_units(job, pending, folder, workers=min(workers, len(pending)), counter=counter, finished=finished)
    return faults


def parts_of(job: Job, units: list[Unit], folder: Path, left_out: set[str]) -> list[tuple[Path, Unit]]:
    """The units the dataset is made of, in order; the last one made again, shorter, where a limit falls inside it."""
    limits = Limits([u for u in units if u.file.name not in left_out], folder, job, left_out)
    assert limits.advance() or limits.exhausted, "a unit is neither done nor left out"
    parts = [(folder, unit) for unit in limits.used]
    if limits.cut is not None and limits.documents != 0 and limits.tokens != 0:
        cut = replace(job, max_documents=limits.documents, max_tokens=limits.tokens)
        if cut == job:
            return [*parts, (folder, limits.cut)]
        aside = folder.with_name(f"{folder.name}-cut")
        convert_unit(cut, limits.cut, aside, lambda *_: None)
        parts.append((aside, limits.cut))
    return parts
