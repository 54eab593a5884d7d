"""Why a save failed, in words for people."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from moe.common.errors import RunFailed
from moe.common.s3 import RemoteError


class SaveError(RunFailed):
    """A checkpoint could not be written; those before it are untouched."""


def explained(
    step: int, error: Exception, *, save_folder: Path, size: int, kept: Path | None, where: str = ""
) -> RunFailed:
    """What is raised for `error`, which is itself where it is one that ends the run.

    Args:
        size: bytes that were to be written.
        kept: where the checkpoint is complete all the same, though not on the remote.
        where: `rank 1 on HOST: `, where there are several.
    """
    if isinstance(error, RunFailed):
        return error
    if isinstance(error, RemoteError):
        only = f"only in {kept}" if kept is not None else "nowhere else"
        return SaveError(f"the checkpoint of step {step} is not on the remote, {only}: {where}{error}")
    free = shutil.disk_usage(save_folder).free if save_folder.is_dir() else 0
    cause, fix = _cause_and_fix(error)
    return SaveError(
        f"the checkpoint of step {step} was not written to {save_folder}: {where}{cause} "
        f"(it needs {size:,} bytes, {free:,} are free). Earlier checkpoints are complete; {fix}"
    )


def _cause_and_fix(error: BaseException) -> tuple[str, str]:
    """torch.save hides what the disk said behind an error of its own."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__context__
    number = found.errno if isinstance(found, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full", "free some space"
    if number == errno.EFBIG:
        return "a file may not be so large here", "raise the limit of file sizes (ulimit -f)"
    return str(found or error), "fix what hinders writing"
