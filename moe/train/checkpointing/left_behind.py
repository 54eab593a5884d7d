"""Checkpoints that a start takes out of its run: broken ones, those after the step that it goes back to, and those that
the run does not have as another machine has continued it. They are renamed, never removed, and no start reads them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

from moe.train.checkpointing.checkpoints import folder_name, set_aside, step_folders
from moe.train.checkpointing.find_run import Found
from moe.train.checkpointing.hidden import hide
from moe.train.checkpointing.remote import RemoteRun

ASIDE = "(Folders under that name are left to you to look at or delete: no start reads them.)"


def leave_behind_remote(found: Found, remote: RemoteRun) -> None:
    for step in found.broken_remote:
        hide(remote.store, folder_name(step), "set-aside")
    if found.back_to is not None:
        remote.leave_behind(found.back_to)


def leave_behind(
    path: Path, found: Found, remote: RemoteRun | None, fetched: Collection[Path], report: Callable[[str], None]
) -> None:
    """fetched: by this start; the folder that stood there before has another name already."""
    back_to = found.back_to
    later = [folder for folder in step_folders(path) if back_to is not None and _step(folder) > back_to]
    left = [(folder, f"going back to step {back_to}: ") for folder in later]
    if remote is not None:
        diverged = f"another machine has trained the run since, and {remote.store.url} has other checkpoints: "
        left += [(folder, diverged) for folder in _named(path, found.diverged) if folder not in later]
    for folder, why in left:
        aside = path / f"left-behind-{folder_name(_step(folder))}-{int(time.time())}"
        if folder not in fetched:
            folder.rename(aside)
            report(f"{why}step {_step(folder)} stays as {aside.name}, and is not part of the run any more")
    if left:
        report("(load_path takes such a left-behind-* folder into a new run; delete it when it is not needed.)")


def set_broken_aside(path: Path, found: Found, fetched: Collection[Path], report: Callable[[str], None]) -> None:
    using = found.checkpoint.path.name if found.checkpoint else "none"
    errors = [error for _, error in found.broken]
    for folder, error in zip(_named(path, [folder for folder, _ in found.broken]), errors, strict=True):
        if folder not in fetched:
            report(f"broken checkpoint: {error}; set aside as {set_aside(folder).name}, using {using}. {ASIDE}")


def _named(path: Path, folders: Collection[Path]) -> list[Path]:
    """By the names that they have now: one that was caught in its replacement was found under another."""
    return [path / folder_name(_step(folder)) for folder in folders]


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
