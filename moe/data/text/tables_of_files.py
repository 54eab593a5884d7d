"""The files of a dataset and their units of work, in few bytes each: there may be a million.

Files lie in a temporary file (TMPDIR), which has no name and is gone with the process. A unit is a few numbers.
"""

from __future__ import annotations

import marshal
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any

from moe.common.temporary import room_for
from moe.data.text.files import SourceFile, Unit

BUFFER_BYTES = 1 << 16
VALUES = attrgetter(*SourceFile.__slots__)


class FileTable(Sequence[SourceFile]):
    """Files in order, read again from disk whenever one is asked for; here 8 bytes each. Threads may share it."""

    def __init__(self, files: Iterable[SourceFile]) -> None:
        self._ends = array("Q", [0])
        self._held: tuple[int, SourceFile | None] = (-1, None)  # the last one that was asked for
        with room_for("the list of files"):
            self._file = tempfile.TemporaryFile(prefix="moe-files-", buffering=BUFFER_BYTES)  # noqa: SIM115
        for file in files:
            with room_for("the list of files"):
                self._ends.append(self._ends[-1] + self._file.write(marshal.dumps(VALUES(file))))
        with room_for("the list of files"):
            self._file.flush()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]  # counts negative ones from the end, and raises IndexError
        held = self._held
        if held[0] != place:
            begin, end = self._ends[place], self._ends[place + 1]
            held = place, SourceFile(*marshal.loads(os.pread(self._file.fileno(), end - begin, begin)))
            self._held = held
        return held[1]

    def __iter__(self) -> Iterator[SourceFile]:
        at, held = 0, b""
        for begin, end in pairwise(self._ends):
            if end > at + len(held):
                at, held = begin, os.pread(self._file.fileno(), max(BUFFER_BYTES, end - begin), begin)
            yield SourceFile(*marshal.loads(held[begin - at : end - at]))


class UnitTable(Sequence[Unit]):
    """Units in order, 29 bytes each. One thread may add to it while others read."""

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self._files = files
        self._file, self._looked_at = array("I"), array("b")
        self._begin, self._end, self._weight = array("Q"), array("Q"), array("Q")
        self._other: dict[int, SourceFile] = {}  # of a unit whose file is read as another kind than it is listed as

    def append(self, unit: Unit) -> None:
        if unit.file != self._files[unit.file_index]:
            self._other[len(self)] = unit.file
        self._file.append(unit.file_index)
        self._begin.append(unit.begin)
        self._end.append(unit.end)
        self._weight.append(unit.weight)
        self._looked_at.append(unit.looked_at)  # last: it says how many there are

    def extend(self, units: Iterable[Unit]) -> None:
        for unit in units:
            self.append(unit)

    def of(self, units: Iterable[Unit]) -> UnitTable:
        """Another table of the same files."""
        table = UnitTable(self._files)
        table.extend(units)
        return table

    @property
    def weight(self) -> int:
        return sum(self._weight)

    def __len__(self) -> int:
        return len(self._looked_at)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        index = self._file[place]
        file = self._other.get(place) or self._files[index]
        return Unit(
            index, file, self._begin[place], self._end[place], self._weight[place], bool(self._looked_at[place])
        )
