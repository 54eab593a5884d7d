"""What lies in a folder: every real file once, and what is not looked at.

- Hidden files and folders are passed over. Links are followed once: a folder or file met under a second name is left
  out, and so is a link to a folder that holds this one. Real names go before links: adding a link renames nothing.
- What this project itself writes is no text: converted datasets, their `.partial`, run folders, tokenizers, exports.
- A folder that cannot be listed is refused by its path: what is in it would be missing silently.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

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


@dataclass
class Walk:
    """Files found, as (name below the folder, path), sorted by name; and what was skipped."""

    files: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def made_by_us(folder: str, names: set[str], is_there: Callable[[str], bool]) -> str | None:
    """What of this project's the folder is, by the names in it; None for any other. is_there: of a name below it."""
    splits = names & {"train", "val"}  # others have a meta.json beside such folders, too
    if "meta.json" in names and any(is_there(f"{split}/index.json") for split in splits):
        return DATASET
    if {"meta.json", "conversion.json"} <= names:
        return DATASET
    if "index.json" in names and any(name.endswith(".mds") for name in names):
        return DATASET
    if folder.endswith(".partial") and names & {"plan.json", "units", "merged"}:
        return "a conversion that is not complete"
    if "run.json" in names and names & {"config.yaml", "events.jsonl", "metrics.jsonl", ".lock"}:
        return "a run folder"
    if {"manifest.json", "state.pt"} <= names:
        return "a checkpoint"
    if "tokenizer.json" in names and names & {"tokenizer_config.json", "special_tokens_map.json", "config.json"}:
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


def _listed(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"--dataset: the folder {printable(folder)} cannot be read ({error.strerror}); "
            "make it readable (chmod), move it away, or name the folders that are meant"
        ) from None


def walk(root: Path, *, outputs: tuple[Path, ...], seen: set[tuple[int, int]]) -> Walk:
    """List `root`.

    outputs: folders that are written to while this is read. seen: (device, inode) of files met in this dataset before;
    those found here are added. Raises InputError for a folder that cannot be listed, or that is itself such an output.
    """
    found, folders = Walk(), set[tuple[int, int]]()
    top = os.path.realpath(root)
    written = {os.path.realpath(path) for path in outputs}
    above = {(s.st_dev, s.st_ino) for s in (os.stat(path) for path in (Path(top), *Path(top).parents))}
    files: list[tuple[bool, str, str]] = []  # by a link, name, path
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
            entries = _listed(folder)
            own = made_by_us(folder, {entry.name for entry in entries}, partial(_is_there, folder))
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
            pending += [one for one in (look(prefix, entry) for entry in entries) if one is not None][::-1]

    def look(prefix: str, entry: os.DirEntry) -> tuple[str, str] | None:
        """Note an entry; a folder to enter comes back."""
        name = prefix + entry.name
        try:
            mode = os.stat(entry.path).st_mode
        except OSError:  # a link to nothing: reported with the files that cannot be read
            mode = stat.S_IFREG
        if entry.name.startswith("."):
            found.left_out.append(LeftOut(name + "/" * stat.S_ISDIR(mode), HIDDEN))
        elif stat.S_ISDIR(mode) and entry.is_symlink():
            later.append((name + "/", entry.path))
        elif stat.S_ISDIR(mode):
            return name + "/", entry.path
        elif stat.S_ISREG(mode):
            files.append((entry.is_symlink(), name, entry.path))
        else:
            found.left_out.append(LeftOut(name, SPECIAL))
        return None

    enter("", top)
    while later:
        name, path = later.pop(0)
        information = os.stat(path)
        if (information.st_dev, information.st_ino) in above:
            found.left_out.append(LeftOut(name, LOOP))
        else:
            enter(name, path)
    files.sort()
    for _, name, path in files:
        try:
            information = os.stat(path)
        except OSError:
            found.files.append((name, path))
            continue
        key = (information.st_dev, information.st_ino)
        if key in seen:
            found.left_out.append(LeftOut(name, TWICE))
        else:
            seen.add(key)
            found.files.append((name, path))
    found.files.sort()
    return found
