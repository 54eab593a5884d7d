"""The units of work that files are cut into.

- A unit is a fixed range of rows (row groups of a parquet file, bytes of a jsonl file), never a function of the
  workers.
- Packed files, text, tables of csv and Arrow, JSON arrays are one unit each: they can only be read from the front.
- Files are looked at by THREADS at once, as a hub answers each in a tenth of a second; units come in the files' order.
- The work begins when the first files have been looked at, the others are while it runs (ahead.py): 27,000 footers of
  a hub that limits requests take most of an hour.
- Of a hub's files only as many are looked at as a limit can need, by rows and bytes of text, with a margin. Where rows
  are skipped, the margin may not do: `Planning.more` looks at further files.
- Small files on this machine are opened when they are read: a million of them once, and by all workers.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import TypeVar

import numpy as np
import pyarrow.parquet as pq

from moe.common.units import say
from moe.data.text.columns import Column, text_column_of
from moe.data.text.errors import NO_ROWS, BadFileError
from moe.data.text.files import SMALL_BYTES, SourceFile, Unit
from moe.data.text.reading import looked_at, opened
from moe.data.text.tables import FOOTER_BYTES, open_parquet
from moe.data.text.tables_of_files import UnitTable

UNIT_BYTES = 256 << 20  # of text: enough English for a full shard of 64 MB, which the merge need not touch
THREADS = 32  # 3,000 footers of 0.1 s took 24 of them 19 s, 32 take 15
BEGIN = 64  # files that are looked at before the work
REPORT_EVERY_S = 5.0
MARGIN = 2  # of rows: as many may be skipped
TOKEN_BYTES, DOCUMENT_BYTES = 16, 64 << 10  # of text, more than those of any usual language or dataset
T = TypeVar("T")
R = TypeVar("R")


def parquet_ranges(metadata: pq.FileMetaData, column: Column) -> list[tuple[int, int, int]]:
    """(begin, end, bytes of text) of consecutive row groups holding about UNIT_BYTES of text each."""
    ranges, begin, size = [], 0, 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        size += next(
            group.column(j).total_uncompressed_size
            for j in range(group.num_columns)
            if f"{group.column(j).path_in_schema}.".startswith(f"{column.path}.")
        )
        if size >= UNIT_BYTES or i == metadata.num_row_groups - 1:
            ranges.append((begin, i + 1, size))
            begin, size = i + 1, 0
    return ranges


def file_units(index: int, file: SourceFile, text_column: str) -> list[Unit]:
    """The file's units. Raises BadFileError for a file that cannot be read at all."""
    return _units_and_rows(index, file, text_column)[0]


def _units_and_rows(index: int, file: SourceFile, text_column: str) -> tuple[list[Unit], int]:
    """As `file_units`, and the file's rows; 0 where only reading would tell."""
    if not (file.remote or os.path.exists(file.path)):
        raise BadFileError(file.name, f"is a link to {file.path}, which is not there; fix the link")
    if file.size == 0:
        raise BadFileError(file.name, "the file is empty (0 bytes); fetch it again")
    if file.kind == "parquet":
        with open_parquet(file, block_bytes=FOOTER_BYTES) as parquet:
            column = text_column_of(parquet.schema_arrow, text_column, file.name)
            if parquet.metadata.num_rows == 0:
                raise BadFileError(file.name, NO_ROWS)
            units = [Unit(index, file, *cut) for cut in parquet_ranges(parquet.metadata, column)]
            return units, parquet.metadata.num_rows
    file = looked_at(file, text_column)
    cuts = [*range(0, file.size, UNIT_BYTES), file.size] if file.kind == "jsonl" else [0, file.size]
    return [Unit(index, file, a, b, b - a) for a, b in pairwise(cuts)], 0


def in_order(call: Callable[[T], R], items: Sequence[T], *, threads: int, ahead: int) -> Generator[R, None, None]:
    """`call(item)` of each item in order, from threads that are at most `ahead` items further than who takes them.

    What `call` raises is raised here. The threads die with the process: one that waits for a server keeps nobody.
    """
    todo: queue.SimpleQueue[tuple[int, T] | None] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[int, R | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        while (task := todo.get()) is not None:
            try:
                results.put((task[0], call(task[1]), None))
            except BaseException as error:
                results.put((task[0], None, error))

    done: dict[int, tuple[R | None, BaseException | None]] = {}
    waiting = enumerate(items)
    for _ in range(min(threads, len(items))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for task in (next(waiting, None) for _ in range(ahead)):
            if task is not None:
                todo.put(task)
        for number in range(len(items)):
            while number not in done:
                index, value, reason = results.get()
                done[index] = (value, reason)
            result, error = done.pop(number)
            if error is not None:
                raise error
            if (following := next(waiting, None)) is not None:
                todo.put(following)
            yield result  # type: ignore[misc]
    finally:
        with contextlib.suppress(queue.Empty):  # what nobody has begun
            while True:
                todo.get_nowait()
        for _ in range(min(threads, len(items))):
            todo.put(None)


@dataclass
class Planning:
    """Units of the first files, in order, and the files among them that cannot be read.

    thorough: every file is opened. Else small files on this machine get their units from the listing alone, but for the
    first of each kind: whoever reads one looks at it then (`Unit.looked_at`).
    """

    files: Sequence[SourceFile]
    text_column: str
    max_documents: int | None = None
    max_tokens: int | None = None
    thorough: bool = False
    units: UnitTable = field(init=False)
    bad: list[BadFileError] = field(default_factory=list)
    looked_at: int = 0
    looked_at_bytes: int = 0
    weight: int = 0  # of `units`
    wanted: np.ndarray | None = None  # bool [files]: only these are looked at; None for all
    _kinds: Counter[str] = field(default_factory=Counter)  # of files that were opened

    def __post_init__(self) -> None:
        self.units = UnitTable(self.files)

    def more(self) -> bool:
        """Look at the files that the limits need, or at as many again; without limits at BEGIN. False where all
        have been.
        """
        if self.looked_at == len(self.files):
            return False
        remote = all(file.remote for file in self.files)
        begun, opened_before, limited = self.looked_at, self._kinds.total(), bool(self.max_documents or self.max_tokens)
        rows = text_bytes = 0
        for units, count in self._look():
            weight = sum(unit.weight for unit in units)
            rows, text_bytes = rows + (count or weight // DOCUMENT_BYTES), text_bytes + weight
            if not self.units:
                continue
            if limited:
                if remote and self._enough(rows, text_bytes) and self.looked_at >= 2 * begun:
                    break
            elif not self.thorough and self._kinds.total() > opened_before + BEGIN:
                break
        return True

    def all(self) -> None:
        """Look at all files."""
        for _ in self.one_by_one():
            pass

    def one_by_one(self) -> Iterator[None]:
        """Look at one file after another, as it is asked for."""
        for _ in self._look():
            yield

    def keep(self, wanted: np.ndarray) -> None:
        """Look at no other files than these from now on, and drop the units and errors of others."""
        self.wanted = wanted
        self.keep_errors(wanted)
        self.units = self.units.of(unit for unit in self.units if wanted[unit.file_index])
        self.weight = self.units.weight
        seen = zip(self.files, wanted[: self.looked_at], strict=False)
        self.looked_at_bytes = sum(file.size for file, mine in seen if mine)

    def keep_errors(self, wanted: np.ndarray) -> None:
        """Drop the errors of other files than these."""
        names = {error.file for error in self.bad}
        mine = {self.files[i].name for i in np.flatnonzero(wanted)} & names if names else names
        self.bad = [error for error in self.bad if error.file in mine]

    def is_wanted(self, index: int) -> bool:
        return self.wanted is None or bool(self.wanted[index])

    def with_further_kinds(self) -> Iterator[Unit]:
        """The units, then of each kind that has none yet those of its first file that can be read."""
        yield from self.units
        kinds = {unit.file.kind for unit in self.units}
        for index in range(self.looked_at, len(self.files)):
            if self.files[index].kind not in kinds:
                with contextlib.suppress(BadFileError):  # noted when its turn comes
                    units = file_units(index, self.files[index], self.text_column)
                    kinds |= {self.files[index].kind, units[0].file.kind}
                    yield from units

    def _look(self) -> Iterator[tuple[list[Unit], int]]:
        """(units, rows) of each further file; none of one that cannot be read. They are noted here."""
        begun, reported = self.looked_at, time.monotonic()
        kinds = Counter(self._kinds)
        lazy = bytes(self._is_lazy(file, kinds) for file in islice(self.files, begun, None))

        def look(index: int) -> tuple[list[Unit], int] | BadFileError:
            try:
                return _units_and_rows(index, self.files[index], self.text_column)
            except BadFileError as error:
                return error

        now = [i for i, later in enumerate(lazy, begun) if not later and self.is_wanted(i)]
        ahead = THREADS if self.max_documents or self.max_tokens else 2 * THREADS
        with contextlib.closing(in_order(look, now, threads=THREADS, ahead=ahead)) as found:
            for index, later in enumerate(lazy, begun):
                file = self.files[index]
                if not self.is_wanted(index):
                    self.looked_at += 1
                    continue
                if later:
                    outcome: tuple[list[Unit], int] | BadFileError
                    outcome = [Unit(index, file, 0, file.size, file.size, looked_at=False)], 0
                else:
                    outcome = next(found)
                    self._kinds[file.kind] += 1
                self.looked_at, self.looked_at_bytes = self.looked_at + 1, self.looked_at_bytes + file.size
                if isinstance(outcome, BadFileError):
                    self.bad.append(outcome)
                    outcome = [], 0
                self.weight += sum(unit.weight for unit in outcome[0])
                self.units.extend(outcome[0])
                yield outcome
                if not later and time.monotonic() - reported > REPORT_EVERY_S:
                    reported = time.monotonic()
                    say(f"looking at the dataset: {self.looked_at} of {len(self.files)} files")

    def _is_lazy(self, file: SourceFile, kinds: Counter[str]) -> bool:
        kinds[file.kind] += 1
        small = not file.remote and file.kind != "parquet" and 0 < file.size <= SMALL_BYTES
        return small and not self.thorough and kinds[file.kind] > BEGIN

    def open_rest(self) -> None:
        """Look at what was not opened: its units stay, but for those of files that cannot be read."""
        units, self.units = self.units, self.units.of([])
        for unit in units:
            try:
                self.units.append(opened(unit, self.text_column))
            except BadFileError as error:
                self.bad.append(error)

    def scope(self) -> str:
        """What a line about the files adds where not all were looked at."""
        return f" (the first {self.looked_at} looked at)" if self.looked_at < len(self.files) else ""

    def _enough(self, rows: int, text_bytes: int) -> bool:
        """Whether one of the limits lies well within so many rows and bytes: the first one that is met ends a run."""
        documents = self.max_documents is not None and rows >= MARGIN * self.max_documents
        return documents or (self.max_tokens is not None and text_bytes >= TOKEN_BYTES * self.max_tokens)


def plan_units(files: Sequence[SourceFile], text_column: str) -> tuple[Sequence[Unit], list[BadFileError]]:
    """All units in order, and the files that cannot be read; every file is opened."""
    planning = Planning(files, text_column, thorough=True)
    planning.all()
    return planning.units, planning.bad
