"""Checkpoint folders: written aside, verified, listed, kept or removed. Plain files; imports no Composer.

    save_folder/step-00005000/state.pt        what Composer's State.state_dict() gives, tensors on CPU
    save_folder/step-00005000/tokenizer/      the tokenizer's files: the folder needs nothing outside of it
    save_folder/step-00005000/manifest.json   sizes and xxh64 of the files, step, tokens, config, ...

Decisions:
- A checkpoint is written in a folder with another name, every file fsynced, the manifest last, then the folder renamed:
  a folder named step-* was complete once. Its hashes tell whether it still is.
- What does not verify is renamed (`set-aside-step-...`) and reported, never removed silently.
- Files are read with weights_only: a checkpoint can carry data, not code.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import torch
import xxhash

from moe.config.times import Time
from moe.errors import InputError
from moe.outside import OutsideName, path_below
from moe.typed_json import parse_json

STATE, MANIFEST = "state.pt", "manifest.json"
TOKENIZER = "tokenizer"  # folder of the tokenizer's files, in a checkpoint and in a run folder
SAVED_MARK = ".saved"  # stands in a run folder from its first checkpoint on
ALLOWED_TYPES: list[Any] = [datetime.timedelta, torch.torch_version.TorchVersion]


ASIDE = "(Folders under that name are left to you to look at or delete: no start reads them.)"


class File(TypedDict):
    bytes: int
    xxh64: str


class Manifest(TypedDict):
    """What each manifest holds, beside what a reader may want to know."""

    step: int
    tokens: int
    config: dict[str, Any]
    data: str  # fingerprint
    eos_id: int
    vocab_size: int
    tokenizer: str | None  # fingerprint; older ones have none
    files: dict[str, File]


class CheckpointError(InputError):
    """A checkpoint that a user named, or that a run needs, cannot be used."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder and what its manifest says."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return self.manifest["step"]

    @property
    def tokens(self) -> int:
        return self.manifest["tokens"]

    @property
    def state_file(self) -> Path:
        return self.path / STATE


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def write_checkpoint(
    save_folder: Path,
    step: int,
    state: dict[str, Any],
    manifest: dict[str, Any],
    more: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes one checkpoint so that it is either whole or not there, whenever the process or the machine stops.

    more: files to stand beside the state, by their path in the checkpoint's folder; the manifest lists them too.

    Raises:
        OSError: the disk is full or gone; nothing is left behind then, earlier checkpoints are untouched.
    """
    target = save_folder / folder_name(step)
    aside = save_folder / f".writing-{folder_name(step)}"
    remove(aside)
    try:
        aside.mkdir(parents=True)
        with open(aside / STATE, "wb") as file:
            torch.save(state, file)
            _sync(file)
        files = {STATE: {"bytes": (aside / STATE).stat().st_size, "xxh64": hash_file(aside / STATE)}}
        for name, content in (more or {}).items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            with open(aside / name, "wb") as file:
                file.write(content)
                _sync(file)
            files[name] = {"bytes": len(content), "xxh64": xxhash.xxh64_hexdigest(content)}
        for folder in {(aside / name).parent for name in more or {}}:
            _sync_folder(folder)
        with open(aside / MANIFEST, "w", encoding="utf-8") as file:
            json.dump({**manifest, "step": step, "files": files}, file, indent=1)
            _sync(file)
        _sync_folder(aside)
        if target.exists():  # the same step again, after going back: the new one replaces it
            target.rename(save_folder / f".replaced-{folder_name(step)}")
        (save_folder / SAVED_MARK).touch()
        aside.rename(target)
        _sync_folder(save_folder)
        shutil.rmtree(save_folder / f".replaced-{folder_name(step)}", ignore_errors=True)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return target


def remove(path: Path) -> None:
    """A folder or a file, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """xxh64 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return _hash_rest(file)


def _hash_rest(file: BinaryIO) -> str:
    digest = xxhash.xxh64()
    while piece := file.read(1 << 22):
        digest.update(piece)
    return digest.hexdigest()


def open_state(checkpoint: Checkpoint) -> BinaryIO:
    """state.pt, open at its front, its bytes verified through this very file: nothing looks the name up again.

    Raises:
        CheckpointError: they are not what the manifest says.
    """
    path = checkpoint.state_file
    try:
        file = open(path, "rb")  # noqa: SIM115 - the caller's
        if _hash_rest(file) != checkpoint.manifest["files"][STATE]["xxh64"]:
            file.close()
            raise CheckpointError(f"{path}: its bytes have changed since it was written (xxh64 differs)")
        file.seek(0)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    return file


def read_checkpoint(folder: Path, *, hashes: bool = True) -> Checkpoint:
    """Reads the manifest and verifies sizes and, unless told otherwise, hashes of all files.

    Raises:
        CheckpointError: names the file and what is wrong with it.
    """
    try:
        manifest = parse_json((folder / MANIFEST).read_bytes(), Manifest)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{folder / MANIFEST}: cannot be read ({reason})") from None
    if STATE not in manifest["files"]:
        raise CheckpointError(f"{folder / MANIFEST}: lists no {STATE}")
    for name, file in manifest["files"].items():
        try:
            path = path_below(folder, name, str(folder / MANIFEST))
        except OutsideName as error:
            raise CheckpointError(str(error)) from None
        size, digest = file["bytes"], file["xxh64"]
        try:
            if not path.is_file():
                raise CheckpointError(f"{path}: is missing")
            if path.stat().st_size != size:
                raise CheckpointError(f"{path}: has {path.stat().st_size} bytes, its manifest says {size}")
            if hashes and hash_file(path) != digest:
                raise CheckpointError(f"{path}: its bytes have changed since it was written (xxh64 differs)")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    return Checkpoint(folder, manifest)


def step_folders(save_folder: Path) -> list[Path]:
    """Checkpoint folders, oldest step first; not verified."""
    found = [p for p in save_folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def replaced_folders(save_folder: Path) -> list[Path]:
    """Checkpoints caught in their replacement by a kill: whole, under the name `clear_unfinished` takes from them."""
    found = [p for p in save_folder.glob(".replaced-step-*") if re.fullmatch(r"\.replaced-step-\d{8,}", p.name)]
    return [p for p in found if not (save_folder / p.name.removeprefix(".replaced-")).exists()]


def newest_checkpoint(folders: list[Path], *, hashes: bool = True) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The last of `folders` (as `step_folders` lists them) that verifies, and the faults of those after it. Changes
    nothing.
    """
    faults: list[CheckpointError] = []
    for folder in reversed(folders):
        try:
            return read_checkpoint(folder, hashes=hashes), faults
        except CheckpointError as error:
            faults.append(error)
    return None, faults


def set_aside(folder: Path) -> Path:
    """Gives a checkpoint folder, where it is there, a name that no start takes; returns it."""
    count, aside = 1, folder.with_name(f"set-aside-{folder.name}")
    while aside.exists():
        count, aside = count + 1, folder.with_name(f"set-aside-{folder.name}-{count + 1}")
    if folder.exists():
        folder.rename(aside)
    return aside


def clear_unfinished(save_folder: Path, report: Callable[[str], None]) -> None:
    """Removes, with a line for each, what an interrupted write left; brings back a checkpoint caught in replacement."""
    for old in replaced_folders(save_folder):
        target = save_folder / old.name.removeprefix(".replaced-")
        old.rename(target)
        report(f"{target.name}: brought back, its replacement was interrupted")
    for old in save_folder.glob(".replaced-step-*"):
        remove(old)
    for partial in [*save_folder.glob(".writing-step-*"), *save_folder.glob(".fetching-step-*")]:
        remove(partial)
        doing, _, name = partial.name[1:].partition("-")
        verb = "written" if doing == "writing" else "fetched"
        report(f"{name}: was being {verb} when the run was stopped; removed the part")


def find_named(path: str) -> Checkpoint:
    """A checkpoint that a user named: a step folder, the state.pt in it, or a run folder for its newest.

    Raises:
        CheckpointError: nothing there that can be used.
    """
    folder = Path(path)
    if folder.name == STATE:
        folder = folder.parent
    if not folder.is_dir():
        raise CheckpointError(f"{path}: there is no such checkpoint folder")
    if (folder / MANIFEST).exists() or (folder / STATE).exists():
        return read_checkpoint(folder)
    if not step_folders(folder):
        raise CheckpointError(f"{path}: is no checkpoint and holds none (step-* folders with {STATE} and {MANIFEST})")
    faults = []
    for candidate in reversed(step_folders(folder)):
        try:
            return read_checkpoint(candidate)
        except CheckpointError as error:
            faults.append(str(error))
    raise CheckpointError("no checkpoint verifies: " + "; ".join(faults))


def load_state(path: Path | BinaryIO, map_location: str = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """Reads state.pt, by its path or open, tensors and plain values only. `mmap` (of a path) leaves on disk what is
    not used.

    Raises:
        CheckpointError: the file carries something else, such as code; nothing of it has been run.
    """
    try:
        with torch.serialization.safe_globals(ALLOWED_TYPES):
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:
        name = path if isinstance(path, Path) else path.name
        reason = next(
            (line for line in str(error).splitlines() if "GLOBAL" in line or "unsupported" in line.lower()), ""
        )
        raise CheckpointError(
            f"{name}: refused, it holds more than tensors and plain values, or is damaged. "
            f"{reason or str(error).splitlines()[0]}"
        ) from None


def steps_to_remove(steps: list[int], *, keep: int, keep_every: Time | None, tokens_per_step: int) -> list[int]:
    """All but the newest `keep` of the given steps (-1: none) and those pinned by `keep_every`.

    Pinned is the first checkpoint at or after each multiple of `keep_every`; it is never removed later, so the rule
    gives the same answer whatever has been removed before, also after a resume.
    """
    steps = sorted(steps)
    pinned: dict[int, int] = {}
    if keep_every is not None:
        for step in steps:
            position = step if keep_every.unit == "ba" else step * tokens_per_step
            pinned.setdefault(position // keep_every.value, step)
        pinned.pop(0, None)
    return [] if keep < 0 else [step for step in steps[: max(0, len(steps) - keep)] if step not in pinned.values()]


def retain(save_folder: Path, **rule: Any) -> list[Path]:
    """Removes the checkpoints that `steps_to_remove` names by `rule`; returns what it removed.

    Raises:
        OSError: one could not be removed; the others are, and the next call tries again.
    """
    steps = [int(folder.name.removeprefix("step-")) for folder in step_folders(save_folder)]
    removed, faults = [], []
    for folder in [save_folder / folder_name(step) for step in steps_to_remove(steps, **rule)]:
        try:
            folder.rename(save_folder / f".removing-{folder.name}")  # no half checkpoint has a good name
            removed.append(folder)
        except OSError as error:
            faults.append(error)
    for leftover in save_folder.glob(".removing-step-*"):
        try:
            shutil.rmtree(leftover)
        except OSError as error:
            faults.append(error)
    if faults:
        raise faults[0]
    return removed
