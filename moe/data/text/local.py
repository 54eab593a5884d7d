"""Files and folders of this machine as a dataset: walked, chosen, named so that each name is of one file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path

import numpy as np

from moe.common.errors import InputError
from moe.common.units import printable
from moe.data.text.content import versions_of
from moe.data.text.files import KNOWN, LeftOut, Source, SourceFile, kind_of
from moe.data.text.known import Lookup
from moe.data.text.selection import by_names, doubled_notes, hash64, kinds_note, select
from moe.data.text.tables_of_files import FileTable
from moe.data.text.walk import OUTPUT, TWICE, Seen, walk

MOST_README = 4 << 20


@dataclass(frozen=True, slots=True)
class _Found:
    """Files of one folder."""

    root: str  # its real path
    above: str  # the path of each file without its name
    names: list[str]


def local_source(
    paths: list[Path], *, config: str | None, split: str, outputs: tuple[Path, ...] = (), known: Lookup | None = None
) -> Source:
    """Files and folders on this machine; what is written to `outputs` is no part of it. known: samples of before.

    Raises InputError when one is missing or cannot be listed, or nothing in them can be read.
    """
    seen = Seen()
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
            found.append(mine)
            left_out += others
            notes += [note if len(paths) == 1 else f"{shown}: {note}" for note in said]
        elif root.exists() and not root.is_file():
            raise InputError(
                f"--dataset {shown}: is not a regular file but a pipe, socket or device; write its text to a file first"
            )
        elif kind_of(root.name) is None:
            raise InputError(f"--dataset {shown}: cannot read this kind of file; {KNOWN} are known")
        elif not seen.is_new(_stat(root)):
            left_out.append(LeftOut(str(root), TWICE))
        else:
            _refuse_choice(root, shown, config, split)
            found.append(_Found(os.path.realpath(root.parent), str(root).removesuffix(root.name), [root.name]))
    if any(one.reason == OUTPUT for one in left_out):
        notes.append("the output lies inside of --dataset; it is not read")
    del seen
    source = FileTable(_source_files(found, known or {}))
    return Source(source, None, left_out, [*notes, *kinds_note(file.name for file in source), *doubled_notes(source)])


def _chosen(
    root: Path, shown: str, config: str | None, split: str, outputs: tuple[Path, ...], seen: Seen
) -> tuple[_Found, list[LeftOut], list[str]]:
    """The files of a folder that are meant, what else is in it, and lines for a person. seen: as walk takes it."""
    listed = walk(root, outputs=outputs, seen=seen)
    above = os.path.join(listed.top, "")
    if not listed.files and any(one.reason == TWICE for one in listed.left_out):
        return _Found(listed.top, above, []), listed.left_out, []
    chosen = select(listed.files, _readme(root), dataset=shown, config=config, split=split, passed=listed.left_out)
    return _Found(listed.top, above, chosen.files), listed.left_out + chosen.left_out, chosen.notes


def _source_files(found: list[_Found], known: Lookup) -> Iterator[SourceFile]:
    def places() -> Iterator[tuple[str, str]]:
        for one in found:
            for name in one.names:
                yield os.path.realpath(one.above + name), kind_of(name) or ""

    known_as, looked_up = tee(places())
    versions = versions_of(looked_up, known)
    for name, (path, kind), (size, version, times) in zip(_names(found), known_as, versions, strict=True):
        yield SourceFile(name, path, kind, size, version, stat=tuple(times) if times else None)


def _refuse_choice(root: Path, shown: str, config: str | None, split: str) -> None:
    """A file is named itself: --config chooses nothing of it, and --split only says again what its name says."""
    if config not in (None, "default"):
        raise InputError(f"--config {config}: {shown} is a file, which has no configs; leave --config out")
    if split != "train":
        by_names([root.name], split, dataset=shown)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


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


def _names(found: list[_Found]) -> Iterable[str]:
    """As unique_names. The names themselves, one after another, where no two files share one."""

    def plain() -> Iterator[str]:
        return (printable(name) for one in found for name in one.names)

    hashes = np.sort(np.fromiter(map(hash64, plain()), np.uint64))
    if not np.any(hashes[1:] == hashes[:-1]):
        return plain()
    return unique_names([(one.root, name) for one in found for name in one.names])


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
