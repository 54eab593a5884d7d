"""An input file, and the part of it that is one unit of work: plain values shared by naming, reading and converting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file.

    `name` is its path below the dataset, the only one of that name in it, and fit to be printed. `path` is where it is
    read from. `version` is its content's: the hub's hash, or what `content.py` makes of a file here. `remote`: `path`
    is below the hub's endpoint. `stat`: of a file here, as it was before its version was read (content.stat_of).
    `listed`: of the hub, the listing's hash of all its bytes (hub.HubEntry.listed).
    """

    name: str
    path: str
    kind: str
    size: int
    version: str
    remote: bool = False
    stat: tuple[int, ...] | None = None
    listed: str | None = None

    def of_kind(self, kind: str) -> SourceFile:
        """The same file, read as another kind."""
        return replace(self, kind=kind)


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
        """The number of this unit alone, which seeds the shuffle of its documents."""
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

    files: Sequence[SourceFile]
    revision: str | None
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


SUFFIXES = sorted(KINDS, key=len, reverse=True)


def kind_of(name: str) -> str | None:
    lower = name.lower()
    return next((KINDS[suffix] for suffix in SUFFIXES if lower.endswith(suffix)), None)


def is_companion(name: str) -> bool:
    """Whether a file of this name describes other files: a licence, a dataset's own record, a tokenizer."""
    base = name.rsplit("/", 1)[-1].lower()
    return base in COMPANIONS or (base.endswith(".txt") and base.removesuffix(".txt") in PAPERS)
