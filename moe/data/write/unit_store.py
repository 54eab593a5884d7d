"""Finished units, by name, in a folder: each by itself or many in one item (items.py).

- `<unit>/` has shards, rests, lengths, hashes and, written last, the done mark; `<item>/` the same of many units.
- Of a unit that is done only its key, counts and item stay in memory: marks are read again when they are needed.
- A power cut leaves files without content under names that say complete. What is damaged is refused, with the folders
  to remove: without them the same command makes those units anew.
"""

from __future__ import annotations

import heapq
import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypedDict

import numpy as np

from moe.common.errors import InputError
from moe.common.typed_json import parse_json
from moe.data.folders import Folder
from moe.data.meta import SPLITS
from moe.data.text.files import Unit, key_of, name_of
from moe.data.write.done_units import Done, DoneUnits

MARK = "done.json"
ITEM = re.compile(r"(\d{5,}-\d{13}-[0-9a-f]{16})/done\.json")
PARSING = threading.Lock()  # numpy parses a header by ast, which fails in Python 3.11 where two threads do it at once
MOST_NAMED = 20  # folders, in a message
ALONE = re.compile(r"(\d{5,}-\d{13})/done\.json")


class Mark(TypedDict):
    """Of a unit's done mark, what is read of it here."""

    documents: dict[str, int]
    tokens: dict[str, int]
    limited: bool


class Rest(NamedTuple):
    """Where a unit's tokens lie that are in no full shard: `name` of `size` bytes, the complete blocks from byte
    `blocks` on, what is behind them from byte `tail` on.
    """

    name: str
    size: int
    blocks: int
    tail: int


def item_marks(folder: Folder, item: str) -> dict[str, dict[str, Any]] | None:
    """The done marks of an item's units, by their names, in order; None where it is not done."""
    content = folder.read(f"{item}/{MARK}")
    return None if content is None else _parsed(folder, f"{item}/{MARK}", content, dict[str, dict[str, Any]])["units"]


def _parsed(folder: Folder, name: str, content: bytes, shape: Any = dict[str, Any]) -> Any:
    try:
        return parse_json(content, shape)
    except ValueError:
        raise damaged(folder, name, "is no record of a finished unit") from None


def damaged(folder: Folder, name: str, error: str) -> InputError:
    """The error of a file of a finished unit; names the units of all files without content, too."""
    empty = [found for found, size in folder.sizes().items() if not size and not found.endswith(".rest")]
    homes = sorted({found.split("/")[0] for found in (name, *empty) if not found.startswith(".")})
    named = ", ".join(f"{folder}/{home}" for home in homes[:MOST_NAMED])
    more = f" and {len(homes) - MOST_NAMED} more with files of 0 bytes" * (len(homes) > MOST_NAMED)
    return InputError(
        f"{folder}/{name}: {error}, as after a power cut or on a damaged disk; remove {named}{more} and run the same "
        "command again: what is removed is made again, all else is kept"
    )


def save_array(path: Path, array: np.ndarray) -> None:
    """The bytes of np.save, of which a full disk is an OSError without a number. array: 1-dimensional, contiguous."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


class UnitStore:
    """What is known of the units in `folder`: listed when first asked, then as `note` and `refresh` say."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._sizes: dict[str, int] | None = None
        self._done = DoneUnits()
        self._noted: set[str] = set()  # items
        self._last: tuple[str, dict[str, dict[str, Any]]] = ("", {})
        self._last_arrays: dict[str, tuple[str, np.ndarray]] = {}  # of each name

    def refresh(self) -> None:
        """Look again: other machines may have made units."""
        self._sizes = None

    def note(self, unit: Unit) -> None:
        """The unit was just made, by itself."""
        content = self.folder.read(f"{unit.name}/{MARK}")
        if content is None:
            raise InputError(
                f"{self.folder}/{unit.name} was made elsewhere and is not visible here; "
                "give an --out that all machines share, or s3://"
            )
        known = self._done.get(unit.key)
        mark = _parsed(self.folder, f"{unit.name}/{MARK}", content, Mark)
        self._done[unit.key] = _brief(mark, known and known.item)

    def note_item(self, item: str, units: tuple[Unit, ...]) -> None:
        """Units of this item were just made, in it or by themselves; the job's limits may have spared some."""
        if item_marks(self.folder, item) is not None:
            self._note_marks(item)
        alone = [unit for unit in units if unit.key not in self._done]
        for unit in alone:
            if item not in self._noted or self.folder.read(f"{unit.name}/{MARK}") is not None:
                self.note(unit)

    def _note_marks(self, item: str) -> None:
        for name, mark in self._marks(item).items():
            self._done[key_of(name)] = _brief(mark, item)
        self._noted.add(item)

    def _marks(self, item: str) -> dict[str, dict[str, Any]]:
        if self._last[0] != item:
            marks = item_marks(self.folder, item)
            if marks is None:
                raise InputError(f"{self.folder}/{item}/{MARK} is missing; run with --overwrite")
            self._last = (item, marks)
        return self._last[1]

    def _list(self) -> dict[str, int]:
        if self._sizes is None:
            self._sizes = self.folder.sizes()
            for name in self._sizes:
                if (found := ITEM.fullmatch(name)) and found[1] not in self._noted:
                    self._note_marks(found[1])
        return self._sizes

    def done(self, unit: Unit) -> Done | None:
        """What the unit's done mark counts; None while it is not done."""
        if (done := self._done.get(unit.key)) is None:
            sizes = self._list()
            if unit.key not in self._done:
                if f"{unit.name}/{MARK}" not in sizes:
                    return None
                self.note(unit)
            done = self._done[unit.key]
        return done

    def names(self) -> Iterator[str]:
        """Of all units that are done, in their order."""
        alone = {key_of(found[1]) for name in self._list() if (found := ALONE.fullmatch(name))}
        return map(name_of, heapq.merge(sorted(key for key in alone if key not in self._done), self._done))

    def mark(self, name: str) -> dict[str, Any]:
        """The done mark of a unit that is done."""
        self._list()
        if (done := self._done.get(key_of(name))) and done.item:
            return self._marks(done.item)[name]
        content = self.folder.read(f"{name}/{MARK}")
        if content is None:
            raise InputError(f"{self.folder}/{name}/{MARK} is missing; run with --overwrite")
        return _parsed(self.folder, f"{name}/{MARK}", content)

    def home(self, unit: Unit) -> str:
        """The folder that a finished unit is in."""
        done = self._done.get(unit.key)
        return (done and done.item) or unit.name

    def rest(self, unit: Unit, mark: dict[str, Any], split: str, *, header: int, block: int, width: int) -> Rest:
        """header: bytes of a full shard's; block: tokens of a sequence; width: bytes of a token."""
        name = f"{self.home(unit)}/{split}.rest"
        if at := mark.get("at"):
            blocks, tail, size = at[split]
            return Rest(name, size, blocks, tail)
        tokens = mark["splits"][split]["rest"]
        return Rest(name, header + tokens * width, header, header + (tokens - tokens % block) * width)

    def size(self, name: str) -> int | None:
        """Bytes of a file below the folder; None where there is none."""
        return self._list().get(name)

    def open(self, name: str, size: int) -> BinaryIO:
        """A file of a finished unit, to be read and closed. Raises InputError unless it has `size` bytes."""
        file = self.folder.open(name)
        found = None if file is None else file.seek(0, io.SEEK_END)
        if file is None or found != size:
            error = "is missing" if file is None else f"has {found} bytes, {size} were written"
            raise damaged(self.folder, name, error)
        file.seek(0)
        return file

    def array(self, unit: Unit, name: str) -> np.ndarray:
        """`lengths` or `hashes` of the unit's documents."""
        home = self.home(unit)
        if home == unit.name:  # not kept: many may be read at once
            return self._array(f"{home}/{name}.npy")
        if self._last_arrays.get(name, ("",))[0] != home:
            self._last_arrays[name] = home, self._array(f"{home}/{name}.npy")
        whole = self._last_arrays[name][1]
        first = self.mark(unit.name)["at"]["documents"]
        return whole[first : first + self._done[unit.key].documents]

    def _array(self, name: str) -> np.ndarray:
        content = self.folder.read(name)
        if content is None:
            raise damaged(self.folder, name, "is missing")
        try:
            with PARSING:
                return np.load(io.BytesIO(content))
        except (ValueError, EOFError):  # whatever is no array
            raise damaged(self.folder, name, "is no array") from None


def _brief(mark: dict[str, Any], item: str | None) -> Done:
    documents, tokens = (sum(mark[what][split] for split in SPLITS) for what in ("documents", "tokens"))
    return Done(documents, tokens, bool(mark["limited"]), item)
