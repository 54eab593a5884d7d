"""The header of a hub dataset's README.md: which files belong to a config and a split.

- Only `configs` is read, and every value as text: a config called 2024 or `on` is called that.
- A header that names no configs says nothing. One that cannot be read, or whose `configs` is no list of configs, is
  refused: all files together are not what its author meant.
- Bounded: a header has at most MOST_CHARS, a pattern MOST_PATTERN; patterns are matched part by part of a path, each by
  an expression that never goes back, so the time grows with the length alone.
"""

from __future__ import annotations

import fnmatch
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

from moe.common.errors import InputError
from moe.common.units import printable

MOST_CHARS = 256 << 10
MOST_PATTERN, MOST_PATTERNS = 1000, 100_000
TRUE = ("true", "yes", "on", "y", "1")
GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class ReadmeConfig:
    name: str
    default: bool
    splits: dict[str, list[str]]  # patterns below the dataset


class _Foreign(ValueError):
    """The header is YAML and says something else than the hub's files of configs."""


def header_of(readme: str) -> str | None:
    """The text between the first line `---` and the next one; None where there is none."""
    lines = readme.removeprefix("\ufeff").lstrip().splitlines()
    if not lines or lines[0].rstrip() != "---":
        return None
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() in ("---", "...")), None)
    return None if end is None else "\n".join(lines[1:end])


def read_configs(readme: str | None, *, dataset: str) -> list[ReadmeConfig]:
    """The configs a README names, none where it names none.

    Raises InputError for a header that means to name them and cannot be read.
    """
    header = header_of(readme or "")
    block = None if header is None else _configs_block(header)
    if block is None:
        return []
    fix = "fix it, or, to use all files of a folder of yours, rename README.md"
    try:
        if len(block) > MOST_CHARS:
            raise _Foreign(f"it has {len(block):,} characters, at most {MOST_CHARS:,} are read")
        content = yaml.load(block, yaml.BaseLoader)
        entries = content.get("configs") if isinstance(content, dict) else None
        if entries in (None, "", [], "null", "~"):
            return []
        if not isinstance(entries, list):
            raise _Foreign("'configs' is not a list")
        return _unique([_config(entry) for entry in entries])
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1} of its 'configs')" if mark else ""
        raise InputError(f"{dataset}: the header of its README.md is not YAML: {problem}{where}; {fix}") from None
    except (_Foreign, RecursionError, ValueError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else printable(str(error))[:200]
        raise InputError(f"{dataset}: the header of its README.md does not name files: {why}; {fix}") from None


def _configs_block(header: str) -> str | None:
    """The header's part that holds `configs`: a large dataset's header is mostly about columns."""
    header = textwrap.dedent(header)
    lines = header.splitlines()
    if header.lstrip()[:1] == "{":
        return header if re.search(r"""["']?configs["']?\s*:""", header) else None
    begin = next((i for i, line in enumerate(lines) if re.match(r"""["']?configs["']?\s*:""", line)), None)
    if begin is None:
        return None
    ends = (i for i in range(begin + 1, len(lines)) if re.match(r"[^\s#\-\]}]", lines[i]))
    return "\n".join(lines[begin : next(ends, len(lines))])


def _unique(configs: list[ReadmeConfig]) -> list[ReadmeConfig]:
    names = [config.name for config in configs]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise _Foreign(f"config {twice} is there twice")
    return configs


def _config(entry: Any) -> ReadmeConfig:
    if not isinstance(entry, dict) or not isinstance(entry.get("config_name"), str):
        raise _Foreign("a config without 'config_name'")
    name, folder = entry["config_name"], entry.get("data_dir") or ""
    if not isinstance(folder, str):
        raise _Foreign(f"data_dir of config {name} is not text")
    folder = f"{folder.strip('/').removeprefix('./')}/" if folder.strip("/.") else ""
    found: dict[str, list[str]] = {}
    for split, paths in _split_paths(entry.get("data_files") or "**", name):
        if len(paths) + sum(map(len, found.values())) > MOST_PATTERNS:  # by aliases: the header itself is bounded
            raise _Foreign(f"config {name} names more than {MOST_PATTERNS:,} paths")
        found.setdefault(split, []).extend(folder + path.removeprefix("./") for path in paths)
    return ReadmeConfig(name, str(entry.get("default", "")).lower() in TRUE, found)


def _split_paths(data_files: Any, name: str) -> list[tuple[str, list[str]]]:
    """(split, paths) of the forms there are: a path, paths, a list of {split, path}, a mapping of split to path."""
    if isinstance(data_files, dict):
        pairs = list(data_files.items())
    elif isinstance(data_files, list) and any(isinstance(item, dict) for item in data_files):
        if not all(isinstance(item, dict) and isinstance(item.get("split"), str) for item in data_files):
            raise _Foreign(f"data_files of config {name} hold an entry without 'split'")
        pairs = [(item["split"], item.get("path")) for item in data_files]
    else:
        pairs = [("train", data_files)]
    found = [(split, [paths] if isinstance(paths, str) else paths) for split, paths in pairs]
    for split, paths in found:
        if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
            raise _Foreign(f"split {split} of config {name} has no path")
        if long := next((path for path in paths if len(path) > MOST_PATTERN), None):
            raise _Foreign(f"a path of config {name} has {len(long):,} characters, at most {MOST_PATTERN:,} are read")
    return found


def choose_config(configs: list[ReadmeConfig], wanted: str | None, *, dataset: str) -> ReadmeConfig:
    """The config asked for, else the dataset's own default. Raises InputError where there is no such one."""
    known = {config.name: config for config in configs}
    fallback = next((c.name for c in configs if c.default), "default" if "default" in known else None)
    name = wanted or fallback or (configs[0].name if len(configs) == 1 else None)
    if name not in known:
        there = ", ".join(sorted(map(printable, known))[:50]) + (
            f" and {len(known) - 50} more" if len(known) > 50 else ""
        )
        given = f"--config {wanted}: no such config in" if wanted else "--config is needed for"
        raise InputError(f"{given} {dataset}; there are {there}")
    return known[name]


@lru_cache(maxsize=4096)
def _part(pattern: str) -> Callable[[str], Any]:
    return re.compile(fnmatch.translate(pattern)).match


def _matches(parts: list[str], names: list[str]) -> bool:
    """Whether path parts fit pattern parts. `**` stands for any number; going back to the last one is enough."""
    i = j = 0
    back: tuple[int, int] | None = None
    while j < len(names):
        if i < len(parts) and parts[i] == "**":
            back, i = (i + 1, j), i + 1
        elif i < len(parts) and _part(parts[i])(names[j]):
            i, j = i + 1, j + 1
        elif back is not None:
            back = (back[0], back[1] + 1)
            i, j = back
        else:
            return False
    return all(part == "**" for part in parts[i:])


def _alternatives(pattern: str) -> list[list[str]]:
    """The pattern's parts; `a**b` inside one part is `a*b` here and `a*`, anything, `*b` across folders."""
    found: list[list[str]] = [[]]
    for part in pattern.split("/"):
        before, stars, after = part.partition("**")
        if not stars or part.strip("*") == "":
            ways = [["**" if stars else part]]
        else:
            after = after.lstrip("*")
            ways = [[f"{before}*{after}".replace("**", "*")], [f"{before}*", "**", f"*{after}".replace("**", "*")]]
        found = [head + way for head in found for way in ways][:64]
    return found


def matcher(patterns: list[str]) -> Callable[[str], bool]:
    """Whether a name fits one of the hub's globs: `*` and `?` stay inside one folder, `**` does not."""
    plain = {pattern for pattern in patterns if not GLOB.search(pattern)}
    globs = [
        (GLOB.split(pattern)[0], parts)
        for pattern in dict.fromkeys(patterns)
        if pattern not in plain
        for parts in _alternatives(pattern)
    ]

    def fits(name: str) -> bool:
        if name in plain:
            return True
        names = name.split("/")
        return any(name.startswith(front) and _matches(parts, names) for front, parts in globs)

    return fits
