"""What is written is on the disk when it is said to be: after a power cut a file that was only written may be empty or
torn under its name, however long ago it was closed.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from typing import IO, Any

CANNOT = (errno.EINVAL, errno.ENOTSUP)  # what a file system says that syncs no folders


def aside_of(path: Path) -> Path:
    """Beside `path`, where it is written before it gets its name. No process number: containers share those."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """The content of a file that was closed. Raises OSError."""
    _sync(path, ())


def sync_folder(folder: Path) -> None:
    """The names in it: which files are there. Raises OSError."""
    _sync(folder, CANNOT)


def sync_tree(folder: Path, *, last: str) -> None:
    """All files of a folder without others in it, `last` behind the rest, then their names. Raises OSError."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name)):
        sync_file(path)
    sync_folder(folder)


def make_folder(folder: Path) -> None:
    """With the folders above it, whose names are on the disk as well. Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _sync(path: Path, passed: tuple[int, ...]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in passed:
            raise
    finally:
        os.close(descriptor)
