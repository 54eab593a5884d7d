"""The run folder: can it be written, has it space, what would the run go on from. Leaves it as it is."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.checks.result import Report, Result
from moe.config import Config, parse_time
from moe.errors import InputError
from moe.estimate.plan import find_disk
from moe.s3 import RemoteError
from moe.units import size

if TYPE_CHECKING:
    from moe.train.checkpoints import Checkpoint
    from moe.train.inputs import Inputs


def existing(folder: Path) -> Path:
    """The folder, or what there is of the path to it."""
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))  # Path.exists may raise


def check_folder(config: Config, *, vocab_size: int) -> list[Result]:
    """Whether files can be made in the run folder, and whether the checkpoints that are kept find space."""
    from moe.train.checkpoints import step_folders
    from moe.train.run_folder import local_folder

    folder = local_folder(config.save_folder, config.run_name)
    place = existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:  # has no name: the folder stays as it is
            file.write(b"moe check")
            file.flush()
    except OSError as error:
        why = "is no folder" if isinstance(error, NotADirectoryError) else f"cannot be written: {error.strerror}"
        return [Result("folder", "fail", f"save_folder ({folder}): {place} {why}; mend it or give another one")]
    return [
        Result("folder", "pass", f"{folder} can be written"),
        _space(config, vocab_size, place, step_folders(folder)),
    ]


def _space(config: Config, vocab_size: int, place: Path, there: list[Path]) -> Result:
    disk, keep = find_disk(config, vocab_size), config.save_num_checkpoints_to_keep
    free = shutil.disk_usage(place).free
    newest = min(disk.most, (1 if keep < 0 else keep) + 1)
    least, most = (max(1, number - len(there)) * disk.checkpoint for number in (newest, disk.most))
    text = f"{size(free)} free on the disk of {place}"
    if free < least:
        return Result(
            "space",
            "fail",
            f"{text}, and {newest} checkpoints of {size(disk.checkpoint)} (those kept and the one being written) "
            f"take {size(least)} more; free some, or lower save_num_checkpoints_to_keep ({keep})",
        )
    if free < most:
        return Result(
            "space",
            "warn",
            f"{text}, enough to begin; by the end {disk.most} checkpoints of {size(disk.checkpoint)} take "
            f"{size(most)} more; free some, or raise keep_every ({config.keep_every})",
        )
    return Result("space", "pass", f"{text}, {size(most)} more for {disk.most} checkpoints at most")


def check_resume(config: Config, inputs: Inputs | None, *, hashes: bool, report: Report) -> Result:
    """Fresh, or the step that the run goes on from; with `hashes` every byte of its checkpoint is read."""
    from moe.train.run_folder import local_folder

    folder = local_folder(config.save_folder, config.run_name)
    try:
        _check_owner(config, folder)
        found, note = _newest(config, folder, hashes, report)
        if found is None and config.load_path is not None:
            return Result("resume", "pass", f"{folder}: starts fresh, from {_other(config, inputs)}")
        if found is None:
            return Result("resume", "pass", f"{folder}: starts fresh")
        if not config.autoresume and config.resume_from is None:
            raise InputError(
                f"save_folder ({folder}) holds a run and autoresume is false; set autoresume=true to go on, "
                "or give another save_folder to start over"
            )
        changes = _changes(config, found, inputs)
    except InputError as error:
        return Result("resume", "fail", str(error))
    except RemoteError as error:
        return Result("resume", "fail", f"save_folder: {error}")
    except OSError as error:
        return Result("resume", "fail", f"{error.filename or folder}: cannot be read: {error.strerror}; mend it")
    steps = parse_time(config.max_duration).to_steps(config.global_train_batch_size * config.max_seq_len)
    if found.step >= steps:
        return Result("resume", "pass", f"{folder}: is complete, at step {found.step:,} of {steps:,}{note}")
    text = f"{folder}: goes on from step {found.step:,} of {steps:,}{note}"
    return Result("resume", "warn" if changes else "pass", "; ".join([text, *changes]))


def _check_owner(config: Config, folder: Path) -> None:
    """Raises InputError where the folder is another run's, or a process trains in it."""
    from moe.train.run_folder import RUN_FILE

    try:
        record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        owner = record.get("run_name")
    except (FileNotFoundError, NotADirectoryError):
        owner = config.run_name
    except (ValueError, AttributeError):
        raise InputError(f"{folder / RUN_FILE}: is damaged; restore or remove it") from None
    if owner != config.run_name:
        raise InputError(
            f"save_folder ({folder}) holds another run, {owner!r}; this one is run_name ({config.run_name}). "
            "Give one of them another name"
        )
    if not os.path.exists(folder / ".lock"):
        return
    with open(folder / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"save_folder ({folder}) is in use by another training process ({lock.read().strip() or 'unknown'}); "
                "wait for it, stop it, or give another run_name"
            ) from None


def _newest(config: Config, folder: Path, hashes: bool, report: Report) -> tuple[Checkpoint | None, str]:
    """What a start would go on from, and what is to be said of it."""
    from moe.train.checkpoints import CheckpointError, folder_name, read_checkpoint, step_folders

    folders = step_folders(folder)
    if config.resume_from is not None:
        step = int(config.resume_from.removeprefix("step:"))
        folders = [path for path in folders if path.name == folder_name(step)]
    remote = _newest_remote(config, folder)
    if remote is not None and (not folders or remote.step > int(folders[-1].name.removeprefix("step-"))):
        return remote, f", fetched from {config.save_folder} and verified then"
    faults = []
    for path in reversed(folders):
        if hashes:
            report(f"verifying {path} ...")
        try:
            found = read_checkpoint(path, hashes=hashes)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        if faults:
            raise InputError("; ".join(faults) + f"; training would set it aside and go on from step {found.step:,}")
        return found, "" if hashes else "; its bytes were not verified"
    if faults:
        raise InputError("; ".join(faults) + "; none verifies: restore one, or give another save_folder to start over")
    if config.resume_from is not None:
        raise InputError(f"resume_from ({config.resume_from}): there is no such checkpoint in {folder}")
    return None, ""


def _newest_remote(config: Config, folder: Path) -> Checkpoint | None:
    from moe.train.checkpoints import MANIFEST, Checkpoint, folder_name
    from moe.train.remote import RemoteRun

    if "://" not in config.save_folder:
        return None
    remote = RemoteRun(config.save_folder, folder, report=lambda line: None)
    steps = remote.steps()
    if config.resume_from is not None:
        steps = [step for step in steps if step == int(config.resume_from.removeprefix("step:"))]
    if not steps:
        return None
    name = f"{folder_name(steps[-1])}/{MANIFEST}"
    try:
        return Checkpoint(folder / folder_name(steps[-1]), json.loads(remote.store.read(name) or b""))
    except ValueError:
        raise InputError(f"{config.save_folder}/{name}: is damaged; remove that checkpoint there") from None


def _other(config: Config, inputs: Inputs | None) -> Path:
    """The checkpoint of `load_path`. Raises InputError where it is not there or does not fit."""
    from moe.train.checkpoints import find_named
    from moe.train.continuing import check_weights_fit

    named = find_named(str(config.load_path))
    if config.load_weights_only:
        size = named.manifest["vocab_size"] if inputs is None else inputs.vocab_size
        check_weights_fit(named, dataclasses.asdict(config), size, _tokenizer(inputs))
    else:
        _changes(config, named, inputs)
    return named.path


def _changes(config: Config, found: Checkpoint, inputs: Inputs | None) -> list[str]:
    """What has changed since the checkpoint. Raises InputError for what must not."""
    from moe.train.continuing import check_continues

    lines: list[str] = []
    settings: dict[str, Any] = dataclasses.asdict(config)
    data = found.manifest["data"] if inputs is None else inputs.fingerprint
    check_continues(found, settings, data, lines.append, _tokenizer(inputs))
    return lines


def _tokenizer(inputs: Inputs | None) -> str | None:
    """Its fingerprint, where it is known."""
    return inputs.tokenizer.fingerprint if inputs is not None and inputs.tokenizer is not None else None
