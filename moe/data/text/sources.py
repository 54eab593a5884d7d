"""What a dataset's name stands for: a list of files.

- A folder in the hub's layout names its configs and splits in its README's header; any other folder is all its files,
  by name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml

from moe.data.hub import dataset_listing
from moe.data.text.files import Source, SourceFile, kind_of
from moe.errors import InputError


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
        listing = dataset_listing(name, revision)
    except InputError as error:
        mend = "or give the path of a folder or file that exists on this machine"
        raise InputError(
            f"--dataset {name}" + (f" --revision {revision}" if revision else "") + f": {error}; {mend}"
        ) from error
    entries = {entry.path: entry for entry in listing.files}
    readme = listing.text_of(entries["README.md"]) if "README.md" in entries else None
    files = []
    for file in select_files(sorted(entries), readme, dataset=name, config=config, split=split):
        kind, entry = kind_of(file), entries[file]
        assert kind is not None
        version = entry.sha256 or entry.blob_id or listing.commit
        files.append(SourceFile(file, listing.url_path(entry), kind, listing.size_of(entry), version, remote=True))
    if not files:
        raise InputError(
            f"--dataset {name}: no parquet, jsonl, jsonl.gz or txt file for config {config}, split {split}"
        )
    return Source(files, listing.commit)


def resolve(*, dataset: tuple[str, ...], config: str | None, split: str, revision: str | None) -> Source:
    """The dataset's files, on this machine or on the hub."""
    if len(dataset) == 1 and is_hub_name(dataset[0]):
        return hub_source(dataset[0], config=config, split=split, revision=revision)
    if revision is not None:
        raise InputError(f"--revision {revision}: {' '.join(dataset)} is on this machine; leave --revision out")
    paths = [Path(name).expanduser() for name in dataset]
    return local_source(paths, dataset=" ".join(dataset), config=config, split=split)
