"""An input file, and the part of it that is one unit of work: plain values shared by naming, reading and converting."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

# by the end of a file's name; what a .json holds is seen when it is opened
KINDS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".json.gz": "jsonl.gz",
    ".jsonl.zst": "jsonl.zst",
    ".json": "json",
    ".txt": "txt",
    ".txt.gz": "txt.gz",
    ".txt.zst": "txt.zst",
    ".csv": "csv",
    ".csv.gz": "csv.gz",
    ".tsv": "tsv",
    ".tsv.gz": "tsv.gz",
    ".arrow": "arrow",
    ".feather": "arrow",
}
KNOWN = "parquet, jsonl and txt (also .gz, .zst), json, csv and tsv (also .gz), arrow, feather"
# not documents: what tools and people put beside them
COMPANIONS = frozenset(
    {
        "dataset_dict.json",
        "dataset_info.json",
        "dataset_infos.json",
        "requirements.txt",
        "robots.txt",
        "special_tokens_map.json",
        "state.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
)
PAPERS = frozenset(
    {"readme", "license", "licence", "notice", "copying", "changelog", "authors", "citation", "contributing"}
)

SMALL_BYTES = 256 << 10  # a file up to it takes longer to be opened, looked at and recorded than to be tokenised


def packed(stat: Iterable[int]) -> bytes:
    """9 bytes a number, for any that a file system has: a tuple of five takes 250."""
    return b"".join(number.to_bytes(9, "little", signed=True) for number in stat)


class SourceFile:
    """One input file; not to be changed.

    `name` is its path below the dataset, the only one of that name in it, and fit to be printed. `path` is where it is
    read from. `version` is its content's: the hub's hash, or what `content.py` makes of a file here. `remote`: `path`
    is below the hub's endpoint. `listed`: of the hub, the listing's hash of all its bytes (hub.HubEntry.listed).

    There may be a million, so each is held in few bytes: of the path what the name does not say, which files share;
    of one here the version as 16 bytes, with the stat record behind it.
    """

    __slots__ = ("_before", "_known", "_path", "_stat", "kind", "listed", "name", "remote", "size")

    def __init__(
        self,
        name: str,
        path: str,
        kind: str,
        size: int,
        version: str,
        remote: bool = False,
        packed_stat: bytes | None = None,
        listed: str | None = None,
    ) -> None:
        self.name, self.kind, self.size, self.remote, self.listed = name, kind, size, remote, listed
        self._path, self._before = path, ""
        if path.endswith(name):
            self._path, self._before = "", sys.intern(path.removesuffix(name))
        self._known: str | bytes = version
        self._stat = packed_stat
        if version.isdecimal() and str(number := int(version)) == version and number < 1 << 128:
            self._known, self._stat = number.to_bytes(16, "little") + (packed_stat or b""), None

    @property
    def path(self) -> str:
        return self._path or self._before + self.name

    @property
    def version(self) -> str:
        known = self._known
        return known if isinstance(known, str) else str(int.from_bytes(known[:16], "little"))

    @property
    def stat(self) -> tuple[int, ...] | None:
        """Of a file here, as it was before its version was read (content.stat_of)."""
        packed = self._packed_stat()
        if packed is None:
            return None
        return tuple(int.from_bytes(packed[i : i + 9], "little", signed=True) for i in range(0, len(packed), 9))

    def _packed_stat(self) -> bytes | None:
        return self._stat if isinstance(self._known, str) else self._known[16:] or None

    def of_kind(self, kind: str) -> SourceFile:
        """The same file, read as another kind."""
        stat = self._packed_stat()
        return SourceFile(self.name, self.path, kind, self.size, self.version, self.remote, stat, self.listed)

    def _values(self) -> tuple[object, ...]:
        return self.name, self.path, self.kind, self.size, self.version, self.remote, self.stat, self.listed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SourceFile) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"SourceFile{self._values()}"


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows of one file: row groups [begin, end) of a parquet file, bytes [begin, end) of any other."""

    file_index: int  # in the dataset's list, unreadable files counted: fixing one does not rename the others' units
    file: SourceFile
    begin: int
    end: int
    weight: int  # bytes of text (parquet) or of the file: the measure of progress
    looked_at: bool = True  # False: of a small file that nobody has opened yet

    @property
    def name(self) -> str:
        return name_of(self.key)

    @property
    def key(self) -> int:
        """64 bits that seed the shuffle of this unit's documents."""
        return self.file_index << 44 | self.begin


def name_of(key: int) -> str:
    """The name of a unit by its key."""
    return f"{key >> 44:05}-{key & (1 << 44) - 1:013}"


def key_of(name: str) -> int:
    index, begin = name.split("-")
    return int(index) << 44 | int(begin)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that is not used. Folders end in `/`; `reason` is one of a few texts, and is counted."""

    name: str
    reason: str


@dataclass(frozen=True)
class Source:
    """A dataset resolved: its files in order and, for the hub, the commit they are taken from.

    left_out: all else that was met. notes: lines for a person about what was not asked for in so many words.
    """

    files: list[SourceFile]
    revision: str | None
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def kind_of(name: str) -> str | None:
    return next(
        (KINDS[suffix] for suffix in sorted(KINDS, key=len, reverse=True) if name.lower().endswith(suffix)), None
    )


def is_companion(name: str) -> bool:
    """Whether a file of this name describes other files: a licence, a dataset's own record, a tokenizer."""
    base = name.rsplit("/", 1)[-1].lower()
    return base in COMPANIONS or (base.endswith(".txt") and base.removesuffix(".txt") in PAPERS)
