"""Locks on files, for whoever must be alone in a folder. The kernel frees them when the process dies.

Decisions:
- "In use by another process" is said for EWOULDBLOCK alone. A file system that has no locks (ENOLCK, ENOSYS,
  EOPNOTSUPP: Lustre without `-o flock`, NFS without a lock manager) is reported as that, once for each folder, and
  the work continues without.
- A file is opened for reading and writing: NFSv4 makes a shared lock of a file that cannot be read, or an exclusive one
  of a file that cannot be written, an EBADF.
- A lock file may be removed by its holder: a lock counts only where the name still leads to the locked file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from moe.common.paths import refuse_irregular

BUSY = (errno.EWOULDBLOCK, errno.EAGAIN)
_REPORTED: set[str] = set()


class Busy(Exception):
    """Another process holds the lock; the text is what it wrote about itself."""


def take_lock(path: Path, report: Callable[[str], None], *, shared: bool = False, create: bool = True) -> TextIO:
    """The open file, locked until it is closed; not locked, with a warning, on a file system that has no locks.

    Args:
        shared: with others that want it shared.
        create: make the file where it is not there.

    Raises:
        Busy: another process holds it.
        OSError: the file cannot be opened.
    """
    while True:
        number = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        file = open(number, "r+", encoding="utf-8", errors="replace")  # noqa: SIM115 - held by the caller
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in BUSY:
                holder = holder_of(file)
                file.close()
                raise Busy(holder) from None
            _tell_once(path, error, report)
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # its holder ended, and took the file away, between open and lock


def share(lock: TextIO) -> None:
    """Let others that want it shared have it, too. For a moment nobody has it."""
    with contextlib.suppress(OSError):  # a file system that has no locks
        fcntl.flock(lock, fcntl.LOCK_SH)


def sign(lock: TextIO) -> None:
    """Writes into the lock file who holds it. A full disk is reported where it matters."""
    with contextlib.suppress(OSError):
        lock.seek(0)
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {os.uname().nodename}")
        lock.flush()


def holder_of(lock: TextIO) -> str:
    """Who signed it, for people."""
    lock.seek(0)
    return lock.read().strip() or "an unknown process"


def held_by(path: Path) -> str | None:
    """Who holds the lock of `path`; None where nobody does or it cannot be known."""
    try:
        refuse_irregular(path)
        with open(path, encoding="utf-8", errors="replace") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go as the file is closed
            except OSError as error:
                return holder_of(file) if error.errno in BUSY else None
    except OSError:
        pass
    return None


def has_locks(path: Path) -> bool:
    """False where the file system says of the lock file `path` that it has none: who holds it cannot be known."""
    try:
        refuse_irregular(path)
        with open(path, encoding="utf-8", errors="replace") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                return error.errno in BUSY
    except OSError:
        pass
    return True


def _tell_once(path: Path, error: OSError, report: Callable[[str], None]) -> None:
    folder = str(path.parent)
    if folder not in _REPORTED:
        _REPORTED.add(folder)
        report(
            f"warning: {path} cannot be locked: {os.strerror(error.errno or 0)}. This file system has no locks (Lustre "
            "needs the mount option flock); continuing: see to it yourself that no second process works there"
        )
