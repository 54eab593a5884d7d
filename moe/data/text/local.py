"""Files and folders of this machine as a dataset: walked, chosen, named so that each name is of one file."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from moe.common.errors import InputError
from moe.common.units import printable
from moe.data.text.content import Known, versions_of
from moe.data.text.files import KNOWN, LeftOut, Source, SourceFile, kind_of, packed
from moe.data.text.selection import by_names, doubled_notes, kinds_note, select
from moe.data.text.walk import OUTPUT, TWICE, walk

MOST_README = 4 << 20


@dataclass(frozen=True, slots=True)
class _Found:
    root: str  # the real path of the folder that the name is below
    name: str
    path: str


def local_source(
    paths: list[Path], *, config: str | None, split: str, outputs: tuple[Path, ...] = (), known: Known | None = None
) -> Source:
    """Files and folders on this machine; what is written to `outputs` is no part of it. known: samples of before.

    Raises InputError when one is missing or cannot be listed, or nothing in them can be read.
    """
    seen: set[tuple[int, int]] = set()
    found: list[_Found] = []
    left_out: list[LeftOut] = []
    notes: list[str] = []
    for root in paths:
        shown = printable(str(root))
        if not os.path.lexists(root):
            first = root.parts[0]
            here = f", and it is looked for here because there is a folder {first}" if Path(first).is_dir() else ""
            raise InputError(f"--dataset {shown}: no such file or folder{here}; correct the path")
        if root.is_dir():
            _refuse_output(root, outputs)
            mine, others, said = _chosen(root, shown, config, split, outputs, seen)
            found += mine
            left_out += others
            notes += [note if len(paths) == 1 else f"{shown}: {note}" for note in said]
        elif root.exists() and not root.is_file():
            raise InputError(
                f"--dataset {shown}: is not a regular file but a pipe, socket or device; write its text to a file first"
            )
        elif kind_of(root.name) is None:
            raise InputError(f"--dataset {shown}: cannot read this kind of file; {KNOWN} are known")
        elif (key := _key(root)) is not None and key in seen:
            left_out.append(LeftOut(str(root), TWICE))
        else:
            _refuse_choice(root, shown, config, split)
            seen |= {key} if key is not None else set()
            found.append(_Found(os.path.realpath(root.parent), root.name, str(root)))
    if any(one.reason == OUTPUT for one in left_out):
        notes.append("the output lies inside of --dataset; it is not read")
    source = _source_files(found, known or {})
    return Source(source, None, left_out, [*notes, *kinds_note(file.name for file in source), *doubled_notes(source)])


def _chosen(
    root: Path, shown: str, config: str | None, split: str, outputs: tuple[Path, ...], seen: set[tuple[int, int]]
) -> tuple[list[_Found], list[LeftOut], list[str]]:
    """The files of a folder that are meant, what else is in it, and lines for a person. seen: as walk takes it."""
    listed = walk(root, outputs=outputs, seen=seen)
    where = dict(listed.files)
    if not where and any(one.reason == TWICE for one in listed.left_out):
        return [], listed.left_out, []
    chosen = select(list(where), _readme(root), dataset=shown, config=config, split=split, passed=listed.left_out)
    real = os.path.realpath(root)
    files = [_Found(real, name, where[name]) for name in chosen.files]
    return files, listed.left_out + chosen.left_out, chosen.notes


def _source_files(found: list[_Found], known: Known) -> list[SourceFile]:
    names = unique_names([(file.root, file.name) for file in found])
    real = [same if (same := os.path.realpath(file.path)) != file.path else file.path for file in found]
    versions = versions_of(((path, kind_of(file.name) or "") for path, file in zip(real, found, strict=True)), known)
    return [
        SourceFile(name, path, kind_of(file.name) or "", size, version, packed_stat=packed(times) if times else None)
        for name, path, file, (size, version, times) in zip(names, real, found, versions, strict=True)
    ]


def _refuse_choice(root: Path, shown: str, config: str | None, split: str) -> None:
    """A file is named itself: --config chooses nothing of it, and --split only says again what its name says."""
    if config not in (None, "default"):
        raise InputError(f"--config {config}: {shown} is a file, which has no configs; leave --config out")
    if split != "train":
        by_names([root.name], split, dataset=shown)


def _key(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _refuse_output(root: Path, outputs: tuple[Path, ...]) -> None:
    real = os.path.realpath(root)
    for output in outputs:
        if real == os.path.realpath(output):
            raise InputError(
                f"--dataset {printable(str(root))}: the output ({printable(str(output))}) is the same folder; "
                "write to another one"
            )


def _readme(root: Path) -> str | None:
    path = root / "README.md"
    if not path.is_file():
        return None
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(MOST_README)
    except OSError as error:
        raise InputError(f"--dataset: {printable(str(path))} cannot be read ({error.strerror})") from None


def unique_names(files: list[tuple[str, str]]) -> list[str]:
    """A name for each (root, name): the name itself where no two files share one, else with as much of the roots before
    it as tells them apart. Nothing of the path above that: a copy elsewhere has the same names.
    """
    plain = [printable(name) for _, name in files]
    if len(set(plain)) == len(plain):
        return plain
    parts = {root: root.strip("/").split("/") for root, _ in files}
    for depth in range(1, max(map(len, parts.values())) + 1):
        named = [printable("/".join([*parts[root][-depth:], name])) for root, name in files]
        if len(set(named)) == len(named) and len(parts) > 1:
            return named
    # names that differ only in bytes which cannot be printed
    count = Counter(plain)
    return [name if count[name] == 1 else f"{name} (#{i})" for i, name in enumerate(plain)]
