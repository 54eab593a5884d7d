"""What a dataset's name stands for: a list of files, and the units of work they are cut into.

- A unit is a fixed range of rows (row groups of a parquet file, bytes of a jsonl file), never a function of the
  workers.
- A folder in the hub's layout names its configs and splits in its README's header; any other folder is all its files,
  by name.
- jsonl.gz and txt files are one unit each: they can only be read from the front.
"""

from __future__ import annotations

import json
import os
import re
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from moe.data.hub import endpoint, fetch_range, request
from moe.data.text.errors import BadFileError
from moe.data.text.files import Source, SourceFile, Unit, kind_of
from moe.data.text.reading import FOOTER_BYTES, open_parquet, peek_jsonl
from moe.errors import InputError

UNIT_BYTES = 256 << 20  # of text: enough English for a full shard of 64 MB, which the merge need not touch


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


def is_hub_name(name: str) -> bool:
    """Whether `name` is `organisation/dataset` and nothing on this machine."""
    pattern = r"[\w-][\w.-]*/[\w-][\w.-]*"
    return not Path(name).exists() and kind_of(name) is None and re.fullmatch(pattern, name) is not None


def local_source(paths: list[Path], *, dataset: str, config: str | None, split: str) -> Source:
    """Files and folders on this machine. Raises InputError when one is missing or nothing in them can be read."""
    files: list[SourceFile] = []
    others = 0
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
            others += sum(kind_of(name) is not None for name in listed) - len(names)
            if not names:
                raise InputError(
                    f"--dataset {root}: no parquet, jsonl, jsonl.gz or txt file for config {config}, split {split}"
                )
        for name in names:
            kind = kind_of(name)
            assert kind is not None
            path = os.path.realpath(base / name)
            try:
                stat = os.stat(path)
                files.append(SourceFile(name, path, kind, stat.st_size, str(stat.st_mtime_ns)))
            except OSError as error:  # told with the other files that cannot be read
                files.append(SourceFile(name, path, kind, 0, f"none: {error.strerror}"))
    return Source(files, None, others)


def hub_source(name: str, *, config: str | None, split: str, revision: str | None) -> Source:
    """The files of a hub dataset's config and split. Raises InputError when the hub does not have them."""
    try:
        api = f"{endpoint()}/api/datasets/{name}/revision/{revision or 'main'}?blobs=true"
        info = request(api, lambda status, body: json.loads(body) if status == 200 else None)
    except InputError as error:
        mend = "or give the path of a folder or file that exists on this machine"
        raise InputError(
            f"--dataset {name}" + (f" --revision {revision}" if revision else "") + f": {error}; {mend}"
        ) from error
    siblings = {entry["rfilename"]: entry for entry in info["siblings"]}
    base = f"datasets/{name}/resolve/{info['sha']}"
    readme = None
    if (entry := siblings.get("README.md")) and entry["size"]:
        readme = fetch_range(f"{endpoint()}/{base}/README.md", 0, entry["size"]).decode("utf-8", "replace")
    files = []
    for file in select_files(sorted(siblings), readme, dataset=name, config=config, split=split):
        kind, entry = kind_of(file), siblings[file]
        assert kind is not None
        version = (entry.get("lfs") or {}).get("sha256") or entry.get("blobId") or info["sha"]
        files.append(SourceFile(file, f"{base}/{file}", kind, entry.get("size") or 0, version, remote=True))
    if not files:
        raise InputError(
            f"--dataset {name}: no parquet, jsonl, jsonl.gz or txt file for config {config}, split {split}"
        )
    return Source(files, info["sha"])


def resolve(*, dataset: tuple[str, ...], config: str | None, split: str, revision: str | None) -> Source:
    """The dataset's files, on this machine or on the hub."""
    if len(dataset) == 1 and is_hub_name(dataset[0]):
        return hub_source(dataset[0], config=config, split=split, revision=revision)
    if revision is not None:
        raise InputError(f"--revision {revision}: {' '.join(dataset)} is on this machine; leave --revision out")
    paths = [Path(name).expanduser() for name in dataset]
    return local_source(paths, dataset=" ".join(dataset), config=config, split=split)


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
    if not (file.remote or os.path.exists(file.path)):
        raise BadFileError(file.name, f"is a link to {file.path}, which is not there; mend it or delete it")
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
