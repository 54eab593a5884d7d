"""A result is complete or not there: written aside, renamed when it has been verified.

.writing-NAME       the result while it is made
.writing-NAME.lock  held by the process that makes it; the kernel frees it when that process dies
.replaced-NAME      what stood there before, until the result has its place

What is removed carries our mark and holds nothing else (moe/common/ownership.py); that is asked before anything is
done.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe.common.errors import InputError, RunFailed
from moe.common.locks import Busy, sign, take_lock
from moe.common.ownership import begin, finish, refuse_unless_own, remove_own, replaceable_place
from moe.common.units import say

DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


@contextlib.contextmanager
def written_aside(out: Path, *, overwrite: bool, kind: str) -> Iterator[Path]:
    """A folder beside `out`, empty but for its mark, that takes its place when the block ends well, and is removed when
    it does not.

    kind: of what is written, "export" or "import"; --overwrite replaces nothing of another kind.

    Raises:
        InputError: `out` is there already, another process writes it, it cannot be written, or the disk is full.
        RunFailed: writing failed half way for another reason.
    """
    out = replaceable_place(out, "--out")
    aside, old = out.with_name(f".writing-{out.name}"), out.with_name(f".replaced-{out.name}")
    try:
        if not out.parent.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
        locked = aside.with_name(f"{aside.name}.lock")
        lock = _lock(locked, out)
    except OSError as error:
        raise InputError(f"--out ({out}): {error.filename or out} cannot be written ({error.strerror})") from None
    try:
        _bring_back(out, old, kind)  # of a process that was killed
        _refuse_what_is_there(out, overwrite, kind)
        remove_own(aside, kind, "--out")
        aside.mkdir()
        begin(aside, kind)
        yield aside
        finish(aside, kind)
        _refuse_what_is_there(out, overwrite, kind)  # once more: the work took long
        if out.exists():
            out.rename(old) if any(out.iterdir()) else out.rmdir()
        aside.rename(out)
    except (InputError, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = disk_error(error)
        if reason is not None:
            free = f"{shutil.disk_usage(out.parent).free:,} bytes free"
            raise InputError(
                f"--out ({out}): {reason} ({free}); nothing was kept. Free space, or give another folder"
            ) from error
        if isinstance(error, OSError):
            raise RunFailed(f"--out ({out}): {error.strerror or error}; nothing was kept") from error
        raise
    finally:
        with contextlib.suppress(OSError, InputError):  # what was raised matters more
            remove_own(aside, kind, "--out")
            _bring_back(out, old, kind)
        with contextlib.suppress(OSError):
            locked.unlink()
        lock.close()


def _lock(path: Path, out: Path) -> Any:
    try:
        lock = take_lock(path, say)
    except Busy as holder:
        raise InputError(
            f"--out ({out}): another export or import is writing there ({holder}); wait for it, or give another folder"
        ) from None
    sign(lock)
    return lock


def _bring_back(out: Path, old: Path, kind: str) -> None:
    """What stood at `out` before, where nothing has taken its place; else it goes."""
    if not os.path.lexists(old):
        return
    refuse_unless_own(old, kind, "--out")  # first: it may be the user's
    if not out.exists():
        old.rename(out)
    remove_own(old, kind, "--out")


def _refuse_what_is_there(out: Path, overwrite: bool, kind: str) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise InputError(f"--out ({out}) is there already; give another folder, or --overwrite to replace it")
    if not out.is_dir():
        raise InputError(f"--out ({out}) is a file; --overwrite replaces only a folder that this script made")
    refuse_unless_own(out, kind, "--out")


def disk_error(error: BaseException | None) -> str | None:
    """What the disk said, where it is the cause of `error`: torch hides it behind an error of its own, and the Rust of
    safetensors makes words of it.
    """
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(found[1])
        if number in DISK_ERRNOS:
            name = error.filename if isinstance(error, OSError) else None
            return os.strerror(number) + (f": {name}" if name else "")
        error = error.__cause__ or error.__context__
    return None
