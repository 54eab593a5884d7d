"""plan.json and conversion.json, read row by row: a million files are as many rows, and little of them is kept."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import zip_longest
from typing import Any, NamedTuple

import xxhash

from moe.common.typed_json import error_in
from moe.data.folders import Folder
from moe.data.text.files import SourceFile, kind_of
from moe.data.text.known import KnownTable
from moe.data.write.streamed_json import read_streamed

LISTS = ("files", "stats", "reads")
HEAD: dict[str, Any] = {"format": int, "request": dict[str, Any], **dict.fromkeys(LISTS, type(None))}
PIECE = 1 << 20


class Begun(NamedTuple):
    """What is small of a record. files: their number. finished: it also says what was read of them."""

    format: int
    request: dict[str, Any]
    files: int
    finished: bool


class Looked(NamedTuple):
    """keys: of the JSON object, none for other JSON; None for what is no JSON. begun: None for what is no record."""

    keys: set[str] | None
    begun: Begun | None


class Records:
    """What was found in records, kept by a hash of their bytes: each is parsed once."""

    def __init__(self) -> None:
        self._looked: dict[bytes, Looked] = {}

    def look(self, folder: Folder, name: str) -> Looked:
        digest = xxhash.xxh128()
        if (file := folder.open(name)) is None:
            return Looked(None, None)
        with file:
            while piece := file.read(PIECE):
                digest.update(piece)
        if (key := digest.digest()) not in self._looked:
            self._looked[key] = _look(folder, name)
        return self._looked[key]


def _look(folder: Folder, name: str) -> Looked:
    head, files, fine = dict[str, Any](), 0, True
    try:
        for part, value in _read(folder, name):
            if not part:
                head.update(value)
            elif part == "files":
                files, fine = files + 1, fine and _is_file(value)
            elif part == "reads":
                fine = fine and isinstance(value, list)
    except ValueError:
        return Looked(None, None)
    fine = fine and "files" in head and not any(error_in(head.get(key), shape) for key, shape in HEAD.items())
    begun = Begun(head["format"], head["request"], files, "reads" in head) if fine else None
    return Looked(set(head), begun)


def _is_file(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _read(folder: Folder, name: str) -> Generator[tuple[str, Any], None, None]:
    if (file := folder.open(name)) is not None:
        with file:
            yield from read_streamed(file, LISTS)


def rows(folder: Folder, name: str, part: str) -> Generator[Any, None, None]:
    """Of one list of a record. Raises ValueError where it is damaged."""
    with closing(_read(folder, name)) as found:
        seen = False
        for own, value in found:
            if own == part:
                seen = True
                yield value
            elif seen:  # the lists behind it are not read
                return


def learn(known: KnownTable, folder: Folder, name: str) -> None:
    """Let `known` have what a record says of its files. Raises ValueError or TypeError where it is damaged."""
    with closing(rows(folder, name, "files")) as files, closing(rows(folder, name, "stats")) as stats:
        known.add((kind_of(own) or "", version, found) for (own, version), found in zip(files, stats, strict=False))


def is_of(folder: Folder, name: str, files: Iterator[SourceFile]) -> bool:
    """Whether the record has the versions of these files, in their order."""
    with closing(rows(folder, name, "files")) as then:
        return all(a is not None and b is not None and a[1] == b.version for a, b in zip_longest(then, files))
