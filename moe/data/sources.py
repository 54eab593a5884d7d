"""What a dataset's name stands for: a list of files, and the units of work they are cut into.

- A unit is a fixed range of rows (row groups of a parquet file, bytes of a jsonl file), never a function of the
  workers.
- A folder in the hub's layout names its configs and splits in its README's header; any other folder is all its files,
  by name.
- jsonl.gz and txt files are one unit each: they can only be read from the front.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from moe.data.errors import BadFileError
from moe.errors import InputError

UNIT_BYTES = 128 << 20  # of text: about one 64 MB shard of tokens
KINDS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".json.gz": "jsonl.gz",
    ".txt": "txt",
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
    """A dataset resolved: its files in order and, for the hub, the commit they are taken from."""

    files: list[SourceFile]
    revision: str | None


def kind_of(name: str) -> str | None:
    return next(
        (KINDS[suffix] for suffix in sorted(KINDS, key=len, reverse=True) if name.lower().endswith(suffix)), None
    )


def pattern_regex(pattern: str) -> re.Pattern[str]:
    """A glob of a hub README as a regular expression: `*` and `?` stay inside one folder, `**` does not."""
    out = ""
    for part in re.split(r"(\*\*/?|\*|\?|\[[^]]*\])", pattern.removeprefix("./")):
        if part.startswith("**"):
            out += "(?:.*/)?" if part.endswith("/") else ".*"
        elif part in ("*", "?"):
            out += "[^/]*" if part == "*" else "[^/]"
        else:
            out += part if part.startswith("[") else re.escape(part)
    return re.compile(out + r"\Z")


def select_files(names: list[str], readme: str | None, *, dataset: str, config: str | None, split: str) -> list[str]:
    """The files of `config` and `split` among `names`, as the README's header says; all readable files without one."""
    header = re.match(r"\A---\s*\n(.*?)\n---", readme or "", re.DOTALL)
    configs = (yaml.safe_load(header.group(1)) or {}).get("configs") if header else None
    if not configs:
        if config not in (None, "default"):
            raise InputError(f"--config {config}: {dataset} names no configs in a README.md; leave --config out")
        chosen = [name for name in names if kind_of(name)]
        return [name for name in chosen if re.search(rf"(^|[/_.-]){re.escape(split)}([/_.-]|$)", name)] or chosen
    known = {entry["config_name"]: entry for entry in configs}
    fallback = next(
        (c for c, entry in known.items() if entry.get("default")), "default" if "default" in known else None
    )
    wanted = config or fallback or (next(iter(known)) if len(known) == 1 else None)
    if wanted not in known:
        given = f"--config {wanted}: no such config in" if wanted else "--config is needed for"
        raise InputError(f"{given} {dataset}; there are {', '.join(sorted(known))}")
    entry = known[wanted]
    data_files = entry.get("data_files", "**")
    if isinstance(data_files, (str, list)) and not (isinstance(data_files, list) and isinstance(data_files[0], dict)):
        data_files = [{"split": "train", "path": data_files}]
    splits = {item["split"]: item["path"] for item in data_files}
    if split not in splits:
        raise InputError(
            f"--split {split}: no such split in config {wanted} of {dataset}; there are {', '.join(splits)}"
        )
    paths = [splits[split]] if isinstance(splits[split], str) else splits[split]
    folder = f"{entry['data_dir'].strip('/')}/" if entry.get("data_dir") else ""
    patterns = [pattern_regex(folder + path) for path in paths]
    return [name for name in names if kind_of(name) and any(p.match(name) for p in patterns)]


def local_source(paths: list[Path], *, dataset: str, config: str | None, split: str) -> Source:
    """Files and folders on this machine. Raises InputError when one is missing or nothing in them can be read."""
    files: list[SourceFile] = []
    for root in paths:
        if not root.exists():
            raise InputError(
                f"--dataset {root}: no such file or folder, and no dataset of that name on the hub is meant"
            )
        if root.is_file():
            if kind_of(root.name) is None:
                raise InputError(
                    f"--dataset {root}: cannot read this kind of file; parquet, jsonl, jsonl.gz and txt are known"
                )
            names, base = [root.name], root.parent
        else:
            base = root
            found = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
            listed = sorted(p.relative_to(root).as_posix() for p in found if not p.name.startswith("."))
            readme = root / "README.md"
            text = readme.read_text(encoding="utf-8") if readme.is_file() else None
            names = select_files(listed, text, dataset=str(root), config=config, split=split)
            if not names:
                raise InputError(
                    f"--dataset {root}: no parquet, jsonl, jsonl.gz or txt file for config {config}, split {split}"
                )
        for name in names:
            path = base / name
            stat = path.stat()
            kind = kind_of(name)
            assert kind is not None
            files.append(SourceFile(name, str(path.resolve()), kind, stat.st_size, str(stat.st_mtime_ns)))
    return Source(files, None)


def check_text_column(schema: pa.Schema, column: str, file: str) -> None:
    """BadFileError unless `column` holds text; names the columns there are."""
    if column not in schema.names:
        raise BadFileError(
            file, f"no column '{column}'; there are {', '.join(schema.names)}: choose one with --text-column"
        )
    kind = schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(check(value) for check in checks):
        raise BadFileError(file, f"column '{column}' is {kind}, not text; choose another with --text-column")


def parquet_ranges(metadata: pq.FileMetaData, column: str) -> list[tuple[int, int, int]]:
    """(begin, end, bytes of text) of consecutive row groups holding about UNIT_BYTES of text each."""
    ranges, begin, size = [], 0, 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        size += next(
            group.column(j).total_uncompressed_size
            for j in range(group.num_columns)
            if group.column(j).path_in_schema.split(".")[0] == column
        )
        if size >= UNIT_BYTES or i == metadata.num_row_groups - 1:
            ranges.append((begin, i + 1, size))
            begin, size = i + 1, 0
    return ranges


def file_ranges(file: SourceFile, text_column: str) -> list[tuple[int, int, int]]:
    """(begin, end, weight) of the file's units. Raises BadFileError for a file that cannot be read at all."""
    from moe.data.reading import FOOTER_BYTES, open_parquet, peek_jsonl

    if file.size == 0:
        raise BadFileError(file.name, "the file is empty (0 bytes); delete it or fetch it again")
    if file.kind == "parquet":
        with open_parquet(file, block_bytes=FOOTER_BYTES) as parquet:
            check_text_column(parquet.schema_arrow, text_column, file.name)
            if parquet.metadata.num_rows == 0:
                raise BadFileError(file.name, "the file has no rows; delete it or fetch it again")
            return parquet_ranges(parquet.metadata, text_column)
    if file.kind != "txt":
        peek_jsonl(file, text_column)
    if file.kind == "jsonl":
        cuts = [*range(0, file.size, UNIT_BYTES), file.size]
        return [(a, b, b - a) for a, b in pairwise(cuts)]
    return [(0, file.size, file.size)]


def plan_units(files: list[SourceFile], text_column: str) -> tuple[list[Unit], list[BadFileError]]:
    """All units in order, and the files that cannot be read."""
    units: list[Unit] = []
    bad: list[BadFileError] = []
    for index, file in enumerate(files):
        try:
            units += [Unit(index, file, *cut) for cut in file_ranges(file, text_column)]
        except BadFileError as error:
            bad.append(error)
    return units, bad
