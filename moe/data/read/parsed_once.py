"""What one process of a machine has made of a large file, kept for the machine's others.

Ranks of one run ask for the same index.json in the same second: of 30,000 shards each would read 10 MB, from a folder
that may be far away, and work on it for a second. The first makes it, the others wait and take the copy.

- Copies lie in a folder of this user's own below that for temporary files, under a name that follows from the file's
  path and state: a file that has changed has another. Nobody else can have put one there.
- A copy is complete or not there, and holds a hash of itself: after a power cut it may be torn. One that cannot be
  used, or a folder without locks or room, costs no more than making it again.
- Each process that makes one removes those that are a week old.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import xxhash

OLD_S = 7 * 86400.0
NAME = re.compile(r"[0-9a-f]{32}(\.lock|\.\d+)?")


def parsed_once(file: Path, state: tuple[int, ...], make: Callable[[], bytes]) -> bytes:
    """What `make` gives for `file`, made by one process of this machine as long as the file's `state` is the same."""
    folder = _own_folder()
    if folder is None:
        return make()
    copy = folder / xxhash.xxh128_hexdigest(f"{file.absolute()}\n{state}")
    try:
        with open(copy.with_suffix(".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (found := _read(copy)) is not None:
                return found
            made = make()
            _keep(copy, made)
            return made
    except OSError:
        return make()


def _own_folder() -> Path | None:
    """None where it cannot be made, or is not of this user alone."""
    folder = Path(tempfile.gettempdir()) / f"moe-parsed-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return folder
    return None


def _read(copy: Path) -> bytes | None:
    with suppress(OSError):
        content = copy.read_bytes()
        if xxhash.xxh128_digest(content[16:]) == content[:16]:
            return content[16:]
    return None


def _keep(copy: Path, made: bytes) -> None:
    aside = copy.with_suffix(f".{os.getpid()}")
    try:
        aside.write_bytes(xxhash.xxh128_digest(made) + made)
        os.rename(aside, copy)
    except OSError:  # no room: the others make it themselves
        with suppress(OSError):
            aside.unlink()
    with suppress(OSError):
        for entry in list(os.scandir(copy.parent)):
            if NAME.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > OLD_S:
                os.unlink(entry.path)
