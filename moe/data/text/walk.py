"""What lies in a folder: every real file once, and what is not looked at.

- Hidden files and folders are passed over. Links are followed once: a folder or file met under a second name is left
  out, and so is a link to a folder that holds this one. Real names go before links: adding a link renames nothing.
- What this project itself writes is no text: converted datasets, their `.partial`, run folders, tokenizers, exports.
- A folder that cannot be listed is refused by its path: what is in it would be missing silently.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from moe.common.errors import InputError
from moe.common.units import printable
from moe.data.text.files import LeftOut

HIDDEN = "hidden (its name begins with a dot)"
TWICE = "the same file as another of these, by another name"
FOLDER_TWICE = "the same folder as another of these, by another name"
LOOP = "a link to a folder that holds this one"
SPECIAL = "no regular file"
OWN = "made by this project: "
DATASET = "a converted dataset"
OUTPUT = OWN + "the output"
RUN = frozenset({"config.yaml", "events.jsonl", "metrics.jsonl", ".lock"})
WORK = frozenset({"plan.json", "units", "merged"})
BESIDE_TOKENIZER = frozenset({"tokenizer_config.json", "special_tokens_map.json", "config.json"})
OURS = (
    frozenset({"meta.json", "conversion.json", "train", "val", "index.json", "run.json", "manifest.json", "state.pt"})
    | frozenset({"tokenizer.json"})
    | RUN
    | WORK
    | BESIDE_TOKENIZER
)  # with *.mds all that made_by_us looks at


@dataclass
class Walk:
    """Names of files below the folder `top`, sorted, and what was skipped."""

    top: str
    files: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


class Seen:
    """Files met, by device and inode: 16 bytes each. Inode 0 is of a file that is not known so."""

    def __init__(self) -> None:
        self._inodes, self._devices = array("Q"), array("Q")
        self._keys = set[tuple[int, int]]()  # of those that is_new has looked at; none where no file is asked about
        self._looked = 0

    def __len__(self) -> int:
        return len(self._inodes)

    def add(self, found: os.stat_result | None) -> None:
        self._inodes.append(found.st_ino if found else 0)
        self._devices.append(found.st_dev if found else 0)

    def key(self, place: int) -> tuple[int, int]:
        return self._devices[place], self._inodes[place]

    def is_new(self, found: os.stat_result | None) -> bool:
        """Whether this file was not met yet; it now is."""
        self._keys.update(map(self.key, range(self._looked, len(self))))
        self._looked = len(self)
        self.add(found)
        key = self.key(self._looked)
        return not key[1] or key not in self._keys

    def several(self) -> list[int]:
        """Places of those whose inode was met more than once."""
        inodes = np.frombuffer(self._inodes, np.uint64)
        ordered = np.sort(inodes)
        twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        return np.flatnonzero(np.isin(inodes, twice[twice > 0])).tolist() if len(twice) else []


def made_by_us(folder: str, names: set[str], is_there: Callable[[str], bool]) -> str | None:
    """What of this project's the folder is, by the names in it; None for any other. is_there: of a name below it."""
    splits = names & {"train", "val"}  # others have a meta.json beside such folders, too
    if "meta.json" in names and any(is_there(f"{split}/index.json") for split in splits):
        return DATASET
    if {"meta.json", "conversion.json"} <= names:
        return DATASET
    if "index.json" in names and any(name.endswith(".mds") for name in names):
        return DATASET
    if folder.endswith(".partial") and names & WORK:
        return "a conversion that is not complete"
    if "run.json" in names and names & RUN:
        return "a run folder"
    if {"manifest.json", "state.pt"} <= names:
        return "a checkpoint"
    if "tokenizer.json" in names and names & BESIDE_TOKENIZER:
        return "a tokenizer or an export"
    return None


def seen_of(names: Sequence[str], *, dataset: str) -> tuple[list[str], list[LeftOut]]:
    """The files of a listing that a walk would find, and what it would pass over. Raises InputError as `walk` does."""
    there, inside = set(names), dict[str, set[str]]()
    for name in names:
        while name:
            folder, _, base = name.rpartition("/")
            inside.setdefault(folder, set()).add(base)
            name = folder
    own = {}
    for folder, bases in inside.items():
        prefix = f"{folder}/" if folder else ""
        if made := made_by_us(folder, bases, lambda name, prefix=prefix: prefix + name in there):  # type: ignore[misc]
            own[folder] = made
    if own.pop("", None) == DATASET:  # a tokenizer may lie beside the text: what is its own is known by name
        raise InputError(f"--dataset {dataset}: is {DATASET}, not text; give the text's own dataset")
    kept: list[str] = []
    left_out: dict[str, LeftOut] = {}
    for name in names:
        above = ["/".join(name.split("/")[:depth]) for depth in range(1, name.count("/") + 1)]
        ours = next((folder for folder in above if folder in own), None)
        if any(part.startswith(".") for part in name.split("/")):
            left_out[name] = LeftOut(name, HIDDEN)
        elif ours is not None:
            left_out[ours] = LeftOut(f"{ours}/", OWN + own[ours])
        else:
            kept.append(name)
    return kept, list(left_out.values())


def _is_there(folder: str, name: str) -> bool:
    return os.path.lexists(os.path.join(folder, name))


def _entries(folder: str) -> Iterator[os.DirEntry]:
    """In no order: sorted, the entries of a folder of a million files would all be in memory."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise InputError(
            f"--dataset: the folder {printable(folder)} cannot be read ({error.strerror}); "
            "make it readable (chmod), move it away, or name the folders that are meant"
        ) from None


def walk(root: Path, *, outputs: tuple[Path, ...], seen: Seen) -> Walk:
    """List `root`.

    outputs: folders that are written to while this is read. seen: files met in this dataset before; those found here
    are added. Raises InputError for a folder that cannot be listed, or that is itself such an output.
    """
    top = os.path.realpath(root)
    found, folders = Walk(top), set[tuple[int, int]]()
    written = {os.path.realpath(path) for path in outputs}
    above = {(s.st_dev, s.st_ino) for s in (os.stat(path) for path in (Path(top), *Path(top).parents))}
    before, links = len(seen), set[int]()
    later: list[tuple[str, str]] = []  # linked folders: name, path

    def enter(prefix: str, folder: str) -> None:
        pending = [(prefix, folder)]
        while pending:
            prefix, folder = pending.pop()
            information = os.stat(folder)
            key = (information.st_dev, information.st_ino)
            if key in folders:
                found.left_out.append(LeftOut(prefix, FOLDER_TWICE))
                continue
            folders.add(key)
            names = {entry.name for entry in _entries(folder) if entry.name in OURS or entry.name.endswith(".mds")}
            own = made_by_us(folder, names, partial(_is_there, folder))
            if folder != top and os.path.realpath(folder) in written:
                found.left_out.append(LeftOut(prefix, OUTPUT))
                continue
            if own is not None:
                if folder == top:
                    raise InputError(
                        f"--dataset {printable(str(root))}: is {own}, not text; give the text's own folder"
                    )
                found.left_out.append(LeftOut(prefix, OWN + own))
                continue
            inside, linked, left_out = list[tuple[str, str]](), list[tuple[str, str]](), list[LeftOut]()
            for entry in _entries(folder):
                name = prefix + entry.name
                about, mode = _information(entry)
                if entry.name.startswith("."):
                    left_out.append(LeftOut(name + "/" * stat.S_ISDIR(mode), HIDDEN))
                elif stat.S_ISDIR(mode):
                    (linked if entry.is_symlink() else inside).append((name + "/", entry.path))
                elif stat.S_ISREG(mode):
                    links.update([len(found.files)] if entry.is_symlink() else [])
                    found.files.append(name)
                    seen.add(about)
                else:
                    left_out.append(LeftOut(name, SPECIAL))
            found.left_out.extend(sorted(left_out, key=lambda one: one.name))
            later.extend(sorted(linked))
            pending += sorted(inside, reverse=True)

    enter("", top)
    while later:
        name, path = later.pop(0)
        information = os.stat(path)
        if (information.st_dev, information.st_ino) in above:
            found.left_out.append(LeftOut(name, LOOP))
        else:
            enter(name, path)
    _drop_twice(found, seen, before, links)
    found.files.sort()
    return found


def _information(entry: os.DirEntry) -> tuple[os.stat_result | None, int]:
    """What is known of an entry, and its mode; of a link to nothing a file's, to be reported as unreadable."""
    try:
        information = os.stat(entry.path)
    except OSError:
        return None, stat.S_IFREG
    return information, information.st_mode


def _drop_twice(found: Walk, seen: Seen, before: int, links: set[int]) -> None:
    """Leave out files that are others of `seen` by another name; `found`'s are there from place `before` on."""
    several = seen.several()
    met = {seen.key(place) for place in several if place < before}
    mine = [place - before for place in several if place >= before]
    twice = set()
    for place in sorted(mine, key=lambda place: (place in links, found.files[place])):
        if (key := seen.key(before + place)) in met:
            found.left_out.append(LeftOut(found.files[place], TWICE))
            twice.add(place)
        met.add(key)
    if twice:
        found.files = [name for place, name in enumerate(found.files) if place not in twice]
