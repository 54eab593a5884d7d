"""Which checkpoints stay, and the removal of others and of unfinished ones.

Decisions:
- A folder goes only where all that is in it was made here: what its manifest lists, or, before there is one, its mark
  (moe/common/ownership.py). One that holds anything else stays as it is; why is reported in one line.
- The manifest goes last: what a removal that broke off has left can still be known.
- Nothing here fails a save or a start: what a disk refuses is reported like the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe.common import ownership
from moe.common.typed_json import parse_json
from moe.common.units import clean_line
from moe.common.untrusted_names import name_error
from moe.config.times import Time
from moe.train.checkpointing.checkpoints import (
    KIND,
    MANIFEST,
    STATE,
    Manifest,
    folder_name,
    replaced_folders,
    set_aside,
    step_folders,
)


def why_not_ours(folder: Path) -> str | None:
    """What is in a checkpoint's folder, complete or unfinished, that was not made here; None where nothing is."""
    if folder.is_symlink() or not folder.is_dir():
        return f"{folder}: is not a folder that was made here"
    ours = _ours(folder)
    places = {str(parent) for name in ours for parent in Path(name).parents}  # empty ones; a link leads elsewhere
    strange = [
        name
        for name in ownership.entries(folder)
        if name not in ours and (name not in places or (folder / name).is_symlink())
    ]
    if not strange:
        return None
    more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
    return f"{folder}: holds {clean_line(strange[0])}{more}, which was not made here"


def _ours(folder: Path) -> list[str]:
    """The files that the manifest or the mark names, these two last. Of a folder with neither state.pt alone: the
    unfinished work of an earlier version.
    """
    try:
        found = list(parse_json((folder / MANIFEST).read_bytes(), Manifest)["files"])
    except (OSError, ValueError):
        found = ownership.marked_files(folder, KIND) or [STATE] * folder.name.startswith(".")
    names = [name for name in found if name_error(name) is None and name not in (ownership.MARK, MANIFEST)]
    return [*names, ownership.MARK, MANIFEST]


def remove_checkpoint(folder: Path) -> str | None:
    """Removes a checkpoint's folder, complete or unfinished; returns, in a line, why it stays, or None.

    One with a name that a start takes gets another before anything of it goes.
    """
    try:
        if reason := why_not_ours(folder):
            return reason
        if folder.name.startswith("step-"):
            folder = folder.rename(folder.with_name(f".removing-{folder.name}"))
        ownership.remove_files(folder, _ours(folder))
        return f"{folder}: something came into it as it was removed" if folder.exists() else None
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror or error}"


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


def retain(save_folder: Path, **rule: Any) -> list[str]:
    """Removes the checkpoints that `steps_to_remove` names by `rule`, and what an earlier removal or replacement has
    left; returns, a line each, why others stay. The next call tries these again.
    """
    steps = [int(folder.name.removeprefix("step-")) for folder in step_folders(save_folder)]
    old = [save_folder / folder_name(step) for step in steps_to_remove(steps, **rule)]
    reasons = _drop_replaced(save_folder)  # before the one that has replaced it goes
    left = [*save_folder.glob(".removing-step-*"), *old]
    return reasons + [reason for folder in left if (reason := remove_checkpoint(folder)) is not None]


def _drop_replaced(save_folder: Path) -> list[str]:
    """Removes checkpoints that a newer one of their step has replaced; returns why others stay, under another name: a
    start would bring them back where the newer one is gone.
    """
    caught = replaced_folders(save_folder)
    reasons: list[str] = []
    for old in [folder for folder in save_folder.glob(".replaced-step-*") if folder not in caught]:
        if reason := remove_checkpoint(old):
            with contextlib.suppress(OSError):
                reason += f"; it stays as {set_aside(old).name}" if why_not_ours(old) else ""
            reasons.append(reason)
    return reasons


def clear_unfinished(save_folder: Path, report: Callable[[str], None]) -> None:
    """Removes, with a line for each, what an interrupted write left; brings back a checkpoint caught in replacement."""
    for old in replaced_folders(save_folder):
        target = save_folder / old.name.removeprefix(".replaced-")
        old.rename(target)
        report(f"{target.name}: brought back, its replacement was interrupted")
    for stays in _drop_replaced(save_folder):
        report(f"warning: {stays}")
    for partial in [*save_folder.glob(".writing-step-*"), *save_folder.glob(".fetching-step-*")]:
        doing, _, name = partial.name[1:].partition("-")
        verb = "written" if doing == "writing" else "fetched"
        reason = remove_checkpoint(partial)
        done = "removed the part" if reason is None else f"the part stays ({reason})"
        report(f"{name}: was being {verb} when the run was stopped; {done}")
