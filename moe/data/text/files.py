"""An input file, and the part of it that is one unit of work: plain values shared by naming, reading and converting."""

from __future__ import annotations

from dataclasses import dataclass

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
}


@dataclass(frozen=True)
class SourceFile:
    """One input file.

    `name` is its path below the dataset, `path` where it is read from, `version` changes with its content.
    """

    name: str
    path: str
    kind: str
    size: int
    version: str
    remote: bool = False  # `path` is below the hub's endpoint


@dataclass(frozen=True)
class Unit:
    """Rows of one file: row groups [begin, end) of a parquet file, bytes [begin, end) of any other."""

    file_index: int  # in the dataset's list, unreadable files counted: mending one does not rename the others' units
    file: SourceFile
    begin: int
    end: int
    weight: int  # bytes of text (parquet) or of the file: the measure of progress

    @property
    def name(self) -> str:
        return f"{self.file_index:05}-{self.begin:013}"

    @property
    def key(self) -> int:
        """64 bits that seed the shuffle of this unit's documents."""
        return self.file_index << 44 | self.begin


@dataclass(frozen=True)
class Source:
    """A dataset resolved: its files in order and, for the hub, the commit they are taken from.

    others: files of a folder that could be read and belong to another config or split.
    """

    files: list[SourceFile]
    revision: str | None
    others: int = 0


def kind_of(name: str) -> str | None:
    return next(
        (KINDS[suffix] for suffix in sorted(KINDS, key=len, reverse=True) if name.lower().endswith(suffix)), None
    )
