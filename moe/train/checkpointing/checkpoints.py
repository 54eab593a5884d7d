"""Checkpoint folders: written aside, verified, listed. Plain files; imports no Composer.

    save_folder/step-00005000/state.pt        what Composer's State.state_dict() gives, tensors on CPU
    save_folder/step-00005000/shard-*         of ranks that share a model (FSDP2): the tensors (parts.py)
    save_folder/step-00005000/tokenizer/      the tokenizer's files: the folder needs nothing outside of it
    save_folder/step-00005000/manifest.json   sizes and xxh64 of the files, step, tokens, config, ...

Decisions:
- A checkpoint is written in a folder with another name, every file fsynced, the manifest last, then the folder renamed:
  a folder named step-* was complete once. Its hashes tell whether it still is.
- The other folder carries a mark with the names of the files to come (moe/common/ownership.py): what a kill leaves of
  it can be distinguished from what somebody else put there, and nothing else is removed (retention.py).
- What does not verify is renamed (`set-aside-step-...`) and reported. Files are read with weights_only: data, not code.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import torch

from moe.common import durable, ownership
from moe.common.paths import refuse_irregular
from moe.common.typed_json import parse_json
from moe.common.untrusted_names import OutsideName, path_below
from moe.train.checkpointing.files import File, SteadyFile, hash_file, hash_rest, write_file
from moe.train.checkpointing.parts import CheckpointError, Divided, error_in_parts, part_files

STATE, MANIFEST, KIND = "state.pt", "manifest.json", "checkpoint"  # the last in marks
GIVE_A_RUN = "give a run folder, such as checkpoints/demo, or one step-* folder in it"
TOKENIZER = "tokenizer"  # folder of the tokenizer's files, in a checkpoint and in a run folder
SAVED_MARK = ".saved"  # stands in a run folder from its first checkpoint on
ALLOWED_TYPES: list[Any] = [datetime.timedelta, torch.torch_version.TorchVersion]


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
    tensors: dict[str, Divided] | None  # of ranks that share a model (parts.py); None where state.pt holds all


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
    """Writes one checkpoint so that it is either complete or not there, whenever the process or the machine stops.

    more: files to stand beside the state, by their path in the checkpoint's folder; the manifest lists them too.

    Raises:
        OSError: the disk is full or gone; nothing is left behind then, earlier checkpoints are untouched.
    """
    more = more or {}
    names = [STATE, *more, MANIFEST]
    aside = make_aside(save_folder, "writing", step)
    try:
        ownership.begin(aside, KIND, names)
        return commit(aside, save_folder, step, manifest, write_state(aside, state, more))
    except BaseException:
        with contextlib.suppress(OSError):
            ownership.remove_files(aside, [*names, ownership.MARK])
        raise


def write_state(aside: Path, state: dict[str, Any], more: Mapping[str, bytes]) -> dict[str, File]:
    """state.pt and the files beside it, fsynced; what the manifest says of them."""
    with open(aside / STATE, "wb") as file:
        torch.save(state, SteadyFile(file))  # type: ignore[arg-type]  # it asks for `write` alone
        durable.sync(file)
    files: dict[str, File] = {STATE: {"bytes": (aside / STATE).stat().st_size, "xxh64": hash_file(aside / STATE)}}
    for name, content in more.items():
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        files[name] = write_file(aside / name, [content])
    for folder in {(aside / name).parent for name in more}:
        durable.sync_folder(folder)
    return files


def write_manifest(aside: Path, step: int, manifest: dict[str, Any], files: Mapping[str, File]) -> None:
    """Last of all files: with it the checkpoint is complete."""
    with open(aside / MANIFEST, "w", encoding="utf-8") as file:
        json.dump({**manifest, "step": step, "files": files}, file, indent=1)
        durable.sync(file)
    (aside / ownership.MARK).unlink()
    durable.sync_folder(aside)


def commit(aside: Path, save_folder: Path, step: int, manifest: dict[str, Any], files: Mapping[str, File]) -> Path:
    """Gives a folder that holds all `files` its manifest and then its name."""
    target = save_folder / folder_name(step)
    write_manifest(aside, step, manifest, files)
    if target.exists():  # the same step again: the new one replaces it, housekeeping removes it
        old = save_folder / f".replaced-{folder_name(step)}"
        set_aside(target) if os.path.lexists(old) else target.rename(old)
    (save_folder / SAVED_MARK).touch()
    aside.rename(target)
    durable.sync_folder(save_folder)
    return target


def make_aside(save_folder: Path, doing: str, step: int) -> Path:
    """A new folder for a checkpoint that is not complete yet, `doing` what; its name is free."""
    count, aside = 1, save_folder / f".{doing}-{folder_name(step)}"
    while os.path.lexists(aside):
        count, aside = count + 1, save_folder / f".{doing}-{folder_name(step)}-{count + 1}"
    aside.mkdir(parents=True)
    return aside


def open_state(checkpoint: Checkpoint) -> BinaryIO:
    """state.pt, open at its front, its bytes verified through this very file: nothing looks the name up again.

    Raises:
        CheckpointError: they are not what the manifest says.
    """
    path = checkpoint.state_file
    try:
        file = open(path, "rb")  # noqa: SIM115 - the caller's
        if hash_rest(file) != checkpoint.manifest["files"][STATE]["xxh64"]:
            file.close()
            raise CheckpointError(f"{path}: its bytes have changed since it was written (xxh64 differs)")
        file.seek(0)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    return file


def read_checkpoint(
    folder: Path, *, hashes: bool = True, parts: bool = True, only: Collection[str] | None = None
) -> Checkpoint:
    """Reads the manifest and verifies sizes and, unless `hashes` is false, hashes of all files.

    Args:
        parts: hash those of ranks that share a model too.
        only: the files to look at, where not all of them are asked for.

    Raises:
        CheckpointError: names the file and what is wrong with it.
    """
    try:
        refuse_irregular(folder / MANIFEST)
        manifest = parse_json((folder / MANIFEST).read_bytes(), Manifest)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{folder / MANIFEST}: cannot be read ({reason})") from None
    if STATE not in manifest["files"]:
        raise CheckpointError(f"{folder / MANIFEST}: lists no {STATE}")
    if reason := error_in_parts(manifest.get("tensors") or {}, manifest["files"]):
        raise CheckpointError(f"{folder / MANIFEST}: {reason}")
    unread = [] if parts else part_files(manifest)
    for name, file in manifest["files"].items():
        if only is not None and name not in only:
            continue
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
            if hashes and name not in unread and hash_file(path) != digest:
                raise CheckpointError(f"{path}: its bytes have changed since it was written (xxh64 differs)")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    return Checkpoint(folder, manifest)


def has_files(
    folder: Path, manifest: Mapping[str, Any], *, hashes: bool = True, only: Collection[str] | None = None
) -> bool:
    """Whether it is a checkpoint that can be used, with the very files of another one's manifest."""
    try:
        return read_checkpoint(folder, hashes=hashes, only=only).manifest["files"] == manifest["files"]
    except CheckpointError:
        return False


def step_folders(save_folder: Path) -> list[Path]:
    """Checkpoint folders, oldest step first; not verified."""
    found = [p for p in save_folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def replaced_folders(save_folder: Path) -> list[Path]:
    """Checkpoints caught in their replacement by a kill: under the name `clear_unfinished` takes from them."""
    found = [p for p in save_folder.glob(".replaced-step-*") if re.fullmatch(r"\.replaced-step-\d{8,}", p.name)]
    return [p for p in found if not (save_folder / p.name.removeprefix(".replaced-")).exists()]


def newest_checkpoint(
    folders: list[Path], read: Callable[[Path], Checkpoint] = read_checkpoint
) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The last of `folders` (as `step_folders` lists them) that verifies, and the errors of those after it."""
    errors: list[CheckpointError] = []
    for folder in reversed(folders):
        try:
            return read(folder), errors
        except CheckpointError as error:
            errors.append(error)
    return None, errors


def set_aside(folder: Path) -> Path:
    """Gives a checkpoint folder, where it is there, a name that no start takes; returns it."""
    name = folder.name.removeprefix(".replaced-")
    count, aside = 1, folder.with_name(f"set-aside-{name}")
    while os.path.lexists(aside):
        count, aside = count + 1, folder.with_name(f"set-aside-{name}-{count + 1}")
    if os.path.lexists(folder):
        folder.rename(aside)
    return aside


def find_named(path: str, read: Callable[[Path], Checkpoint] = read_checkpoint) -> Checkpoint:
    """A checkpoint that a user named: a step folder, the state.pt in it, or a run folder for its newest. Raises
    CheckpointError where nothing there can be used, or the newest does not verify: an older one has to be named.
    """
    folder = Path(path).parent if Path(path).name == STATE else Path(path)
    folder = Path(os.path.abspath(folder)) if folder.name in ("", "..") else folder  # the run's is found by its name
    if not folder.is_dir():
        raise CheckpointError(f"{path}: is {'a file' if folder.exists() else 'not there'}; {GIVE_A_RUN}")
    if (folder / MANIFEST).exists() or (folder / STATE).exists():
        return read(folder)
    if not step_folders(folder):
        raise CheckpointError(f"{path}: is no checkpoint and holds none (with {STATE} and {MANIFEST}); {GIVE_A_RUN}")
    found, errors = newest_checkpoint(step_folders(folder), read)
    if found is None:
        raise CheckpointError("no checkpoint verifies: " + "; ".join(map(str, errors)))
    if errors:
        raise CheckpointError(f"{errors[0]}. The newest that verifies is {found.path}: give that, or restore the newer")
    return found


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
