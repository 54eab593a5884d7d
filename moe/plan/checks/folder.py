"""The run folder: can it be written, has it space, what would the run resume from. Leaves it as it is."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.common.errors import InputError
from moe.common.locks import has_locks, held_by
from moe.common.s3 import RemoteError
from moe.common.units import size
from moe.config import Config
from moe.config.steps import Steps
from moe.plan.checks.result import Report, Result
from moe.plan.estimate import find_disk

if TYPE_CHECKING:
    from moe.train.checkpointing.checkpoints import Checkpoint
    from moe.train.inputs import Inputs


def existing(folder: Path) -> Path:
    """The folder, or what there is of the path to it."""
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))  # Path.exists may raise


def check_folder(config: Config, *, vocab_size: int) -> list[Result]:
    """Whether files can be made in the run folder, and whether the checkpoints that are kept find space."""
    from moe.train.checkpointing.checkpoints import step_folders
    from moe.train.checkpointing.run_folder import local_folder

    folder = local_folder(config.save_folder, config.run_name)
    place = existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:  # has no name: the folder stays as it is
            file.write(b"moe check")
            file.flush()
    except OSError as error:
        why = "is not a folder" if isinstance(error, NotADirectoryError) else f"cannot be written: {error.strerror}"
        return [Result("folder", "fail", f"save_folder ({folder}): {place} {why}; fix it or give another one")]
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


def kept_settings(config: Config) -> dict[str, Any] | None:
    """The config of the checkpoint that the run resumes from, or continues (`load_path`), whose numbers it keeps where
    it says `auto`; None where there is none on this machine. What else there is to be said of it, `check_resume` says.
    """
    from moe.train.checkpointing.run_folder import local_folder

    here = str(local_folder(config.save_folder, config.run_name))  # nobody waits for a remote yet
    found = _continued(dataclasses.replace(config, save_folder=here))
    return found.manifest["config"] if found is not None else None


def _continued(config: Config) -> Checkpoint | None:
    """The checkpoint that the run resumes from, or continues (`load_path`). One that is not on this machine, or cannot
    be used, is not looked into: `check_resume` reports that.
    """
    from moe.train.checkpointing.checkpoints import find_named, read_checkpoint
    from moe.train.checkpointing.run_folder import local_folder

    try:
        found, _ = _find(config, local_folder(config.save_folder, config.run_name), False, lambda line: None)
        if found is None and config.load_path is not None and not config.load_weights_only:
            found = find_named(config.load_path, partial(read_checkpoint, hashes=False))
    except (InputError, OSError):  # a remote that cannot be read is an OSError
        return None
    return found


def resumes_in_stock_order(config: Config) -> bool:
    """Whether the checkpoint that the run resumes from, or continues (`load_path`), is in Streaming's order, an array
    of each epoch: its position names none.
    """
    from moe.train.checkpointing.checkpoints import load_state

    if (found := _continued(config)) is None:
        return False
    try:
        state = load_state(found.state_file, mmap=True)["state"]
    except (InputError, OSError):
        return False
    return "order" not in state.get("dataset_state", {}).get("train", {"order": None})


def check_resume(config: Config, inputs: Inputs | None, *, hashes: bool, report: Report) -> Result:
    """Fresh, or the step that the run resumes from; with `hashes` every byte of its checkpoint is read."""
    from moe.train.checkpointing.run_folder import local_folder

    folder = local_folder(config.save_folder, config.run_name)
    try:
        if holder := held_by(folder / ".lock"):
            raise InputError(
                f"save_folder ({folder}) is in use by another training process ({holder}); "
                "wait for it, stop it, or give another run_name"
            )
        found, note = _find(config, folder, hashes, report)
        if found is None and config.load_path is not None:
            named, changes = _other(config, inputs)
            text = f"{folder}: starts fresh, from {named}"
            return Result("resume", "warn" if changes else "pass", "; ".join([text, *changes]))
        if found is None:
            return Result("resume", "pass", f"{folder}: starts fresh")
        changes = _changes(config, found, inputs) + _locks(folder)
    except InputError as error:
        return Result("resume", "fail", str(error))
    except RemoteError as error:
        return Result("resume", "fail", f"save_folder: {error}")
    except OSError as error:
        return Result("resume", "fail", f"{error.filename or folder}: cannot be read: {error.strerror}; fix it")
    steps = Steps.of(config).total
    if found.step >= steps:
        return Result("resume", "pass", f"{folder}: is complete, at step {found.step:,} of {steps:,}{note}")
    text = f"{folder}: resumes from step {found.step:,} of {steps:,}{note}"
    return Result("resume", "warn" if changes else "pass", "; ".join([text, *changes]))


def _find(config: Config, folder: Path, hashes: bool, report: Report) -> tuple[Checkpoint | None, str]:
    """What a start would resume from, found as a start finds it, and what is to be said of it."""
    from moe.train.checkpointing.checkpoints import read_checkpoint
    from moe.train.checkpointing.find_run import find_run
    from moe.train.checkpointing.remote import RemoteRun

    remote = RemoteRun(config.save_folder, folder, report=report) if "://" in config.save_folder else None
    if hashes:
        report(f"verifying the checkpoint that {folder} would resume from ...")
    run = find_run(
        folder,
        remote,
        run_name=config.run_name,
        autoresume=config.autoresume,
        resume_from=config.resume_from,
        report=report,
        read=partial(read_checkpoint, hashes=hashes),
    )
    found = run.checkpoint
    if found is None:
        return None, ""
    if errors := [str(error) for _, error in run.broken]:
        raise InputError("; ".join(errors) + f"; training would set it aside and resume from step {found.step:,}")
    if run.only_remote:
        return found, f", fetched from {config.save_folder} and verified then"
    return found, "" if hashes else "; its bytes were not verified"


def _locks(folder: Path) -> list[str]:
    """What is to be said where nobody can tell whether another process trains there."""
    if has_locks(folder / ".lock"):
        return []
    return ["this file system has no locks: see to it yourself that no other process trains in that folder"]


def _other(config: Config, inputs: Inputs | None) -> tuple[Path, list[str]]:
    """The checkpoint of `load_path`, and what a start from it would say. Raises InputError where it is not there or
    does not fit.
    """
    from moe.train.checkpointing.checkpoints import find_named
    from moe.train.checkpointing.compatibility import check_weights_fit

    named = find_named(str(config.load_path))
    if config.load_weights_only:
        size = named.manifest["vocab_size"] if inputs is None else inputs.vocab_size
        lines: list[str] = []
        check_weights_fit(named, dataclasses.asdict(config), size, _tokenizer(inputs), lines.append)
        return named.path, lines
    return named.path, _changes(config, named, inputs)


def _changes(config: Config, found: Checkpoint, inputs: Inputs | None) -> list[str]:
    """What has changed since the checkpoint. Raises InputError for what must not."""
    from moe.optim.auto import resolve
    from moe.optim.rates import rate_change
    from moe.train.checkpointing.compatibility import check_continues

    lines: list[str] = []
    settings: dict[str, Any] = dataclasses.asdict(resolve(config, kept=found.manifest["config"])[0])
    data, former = (found.manifest["data"], ()) if inputs is None else (inputs.fingerprint, inputs.former)
    check_continues(found, settings, data, lines.append, _tokenizer(inputs), former=former)
    moved = rate_change(found.manifest["config"], settings, found.step)
    return [*lines, *([moved] if moved else [])]


def _tokenizer(inputs: Inputs | None) -> str | None:
    """Its fingerprint, where it is known."""
    return inputs.kept_tokenizer.fingerprint if inputs is not None and inputs.kept_tokenizer is not None else None
