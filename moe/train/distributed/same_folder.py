"""Whether all machines of a run see one run folder. Without that a run trains and saves, and cannot resume."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from moe.common.errors import InputError
from moe.train.distributed.ranks import LOCAL_RANK, MACHINES, RANK, agreed

SEEN_AFTER = 5.0  # seconds that a network file system may take to show a new file
LOOK = 0.1


def shows(look: Callable[[], bool]) -> bool:
    """Whether `look` comes to see what another machine has written: a network file system may take its time."""
    end = time.monotonic() + SEEN_AFTER
    while not look():
        if time.monotonic() > end:
            return False
        time.sleep(LOOK)
    return True


def check_same_folder(path: Path, save_folder: str) -> None:
    """Rank 0 lays a file beside or above `path`, which the first rank of each machine looks for; then it is gone again.

    Raises:
        InputError: on every rank: a machine does not see it.
    """
    if MACHINES == 1 or "://" in save_folder:
        return
    laid: list[Path] = []

    def lay() -> tuple[int, str]:
        there = path.absolute()
        depth = next(depth for depth, folder in enumerate((there, *there.parents)) if folder.is_dir())
        file = (there, *there.parents)[depth] / f".moe-{uuid.uuid4().hex}"
        file.touch(exist_ok=False)
        laid.append(file)
        return depth, file.name

    def look() -> None:
        there = path.absolute()
        folder = (there, *there.parents)[min(depth, len(there.parents))]
        if not shows(lambda: os.path.lexists(folder / name)):
            raise InputError(
                f"save_folder ({save_folder}) is not one folder for all machines: {os.uname().nodename} does not "
                "see what rank 0 writes there, and could not resume; give a folder on a file system that all "
                "machines share, or s3://bucket/prefix"
            )

    try:
        depth, name = agreed(lay, here=RANK == 0)
        agreed(look, here=LOCAL_RANK == 0)
    finally:
        for file in laid:
            with suppress(OSError):
                file.unlink()
