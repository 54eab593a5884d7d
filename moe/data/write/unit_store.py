"""Finished units, by name: `<folder>/<unit>/` with shards, rests, lengths, hashes and, written last, the done mark."""

from __future__ import annotations

import io
import json
from typing import BinaryIO

import numpy as np

from moe.common.errors import InputError
from moe.data.folders import Folder
from moe.data.meta import SPLITS
from moe.data.text.files import Unit

MARK = "done.json"


class UnitStore:
    """What is known of the units in `folder`: listed when first asked, then as `note` and `refresh` say."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._sizes: dict[str, int] | None = None
        self._marks: dict[str, dict] = {}

    def refresh(self) -> None:
        """Look again: other machines may have made units."""
        self._sizes = None

    def note(self, unit: Unit) -> None:
        """The unit was just made."""
        content = self.folder.read(f"{unit.name}/{MARK}")
        if content is None:
            raise InputError(
                f"{self.folder}/{unit.name} was made elsewhere and is not visible here; "
                "give an --out that all machines share, or s3://"
            )
        self._marks[unit.name] = json.loads(content)

    def done(self, unit: Unit) -> dict | None:
        """The unit's done mark; None while it is not done."""
        if unit.name not in self._marks:
            if self.size(unit, MARK) is None:
                return None
            self.note(unit)
        return self._marks[unit.name]

    def size(self, unit: Unit, name: str) -> int | None:
        """Bytes of a file of the unit; None where there is none."""
        if self._sizes is None:
            self._sizes = self.folder.sizes()
        return self._sizes.get(f"{unit.name}/{name}")

    def open(self, unit: Unit, name: str, size: int) -> BinaryIO:
        """A file of a finished unit, to be read and closed. Raises InputError unless it has `size` bytes."""
        file = self.folder.open(f"{unit.name}/{name}")
        found = None if file is None else file.seek(0, io.SEEK_END)
        if file is None or found != size:
            fault = "is missing" if file is None else f"has {found} bytes, {size} were written"
            raise InputError(f"{self.folder}/{unit.name}/{name} {fault}; run with --overwrite")
        file.seek(0)
        return file

    def array(self, unit: Unit, name: str) -> np.ndarray:
        content = self.folder.read(f"{unit.name}/{name}")
        if content is None:
            raise InputError(f"{self.folder}/{unit.name}/{name} is missing; run with --overwrite")
        return np.load(io.BytesIO(content))


def totals(done: dict) -> tuple[int, int]:
    """(documents, tokens) of a done mark, both splits together."""
    return sum(done["documents"][s] for s in SPLITS), sum(done["tokens"][s] for s in SPLITS)
