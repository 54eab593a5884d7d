"""What readers take of /dev/shm; what a killed run left there is removed, and nothing else.

StreamingDataset names its segments NNNNNN_<what>; NNNNNN_locals holds the folders it reads. A prefix is removed when
those are among the given folders and no living process has that segment mapped: another run, on this data or other,
keeps its own. One whose folders cannot be read belongs to no run, and would end every start of this machine with
Streaming's traceback: it is removed too.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import tempfile
from pathlib import Path

from moe.common.errors import InputError
from moe.common.units import size
from moe.data.read.stock import BARRIER_FILELOCK, CACHE_FILELOCK, LOCALS, _unpack_locals

SHM = Path("/dev/shm")
SEGMENTS = 1 << 19  # bytes: Streaming's own, 0.15 MB and 9 bytes a shard, and the semaphores of loader workers


def needed_bytes(batch_tokens: int, num_workers: int, *, converted: bool) -> int:
    """Of a machine's /dev/shm: each loader worker has two batches on their way while one is trained on, tokens and
    labels as int64.

    batch_tokens: of one step, of this machine's ranks together. num_workers: of each rank. converted: whether
    converted data are read, and not text alone, as it goes.
    """
    batches = 2 * num_workers + 1 if num_workers else 0
    return batches * batch_tokens * 2 * 8 + (SEGMENTS if num_workers or converted else 0)


def refuse_little(batch_tokens: int, num_workers: int, *, converted: bool) -> None:
    """Raises InputError where /dev/shm has less free than `needed_bytes`: its owner dies of a bus error, or hangs."""
    if not SHM.is_dir():
        return
    free, needed = shutil.disk_usage(SHM).free, needed_bytes(batch_tokens, num_workers, converted=converted)
    if free < needed:
        raise InputError(f"{SHM} has {size(free)} free, about {size(needed)} are needed; {more_room(num_workers)}")


def more_room(num_workers: int) -> str:
    """How to get it."""
    fewer = f", or lower num_workers ({num_workers})" if num_workers else ""
    return f"free some, or mount more (docker run --shm-size=1g){fewer}"


def mapped_segments() -> set[str]:
    """Names of /dev/shm segments that a living process has mapped, as far as /proc may be read."""
    names: set[str] = set()
    for maps in glob.glob("/proc/[0-9]*/maps"):
        try:
            with open(maps, errors="replace") as file:
                names |= set(re.findall(r"/dev/shm/(\d{6}_\w+)$", file.read(), re.MULTILINE))
        except OSError:  # the process ended, or belongs to someone else
            continue
    return names


def folders_of(content: bytes) -> list[str] | None:
    """The folders in a NNNNNN_locals segment: a length (zero once the dataset is closed), then folders and the prefix.
    None where Streaming cannot read it.
    """
    try:
        _unpack_locals(content)
    except (ValueError, IndexError):
        return None
    return content[4:].rstrip(b"\0").decode("utf-8", "replace").split("\0")[:-1]


def clean_stale_shared_memory(folders: list[str]) -> list[str]:
    """Unlink the segments of dead runs over `folders` (split folders, such as data/train). Returns the names removed.

    Call it on one process of the machine, before the loaders are built. Does nothing where there is no /dev/shm.
    """
    ours = {os.path.abspath(folder) for folder in folders}
    removed: list[str] = []
    found = sorted({path.name[:6] for path in SHM.glob("[0-9][0-9][0-9][0-9][0-9][0-9]_*")})
    living = {name[:6] for name in mapped_segments()}  # after the list: a run that starts in between is in neither
    for prefix in found:
        if prefix in living or not _is_leftover(prefix, ours):
            continue
        locks = [Path(tempfile.gettempdir(), f"{prefix}_{name}") for name in (BARRIER_FILELOCK, CACHE_FILELOCK)]
        locals_ = SHM / f"{prefix}_{LOCALS}"  # the last to go: it says whose the others are
        for leftover in [*({*SHM.glob(f"{prefix}_*")} - {locals_}), locals_, *locks]:
            try:
                leftover.unlink()
                removed.append(leftover.name)
            except OSError:
                continue
    return removed


def _is_leftover(prefix: str, ours: set[str]) -> bool:
    """Whether the segments of this number, which no process has mapped, may be removed: they are of our folders, or of
    nobody's: the folders cannot be read, or a segment is empty, as only one that was killed in its first moment is.
    """
    try:
        if any(path.stat().st_size == 0 for path in SHM.glob(f"{prefix}_*")):
            return True
        if not (SHM / f"{prefix}_{LOCALS}").exists():
            return False
        folders = folders_of((SHM / f"{prefix}_{LOCALS}").read_bytes())
    except OSError:
        return False
    return folders is None or (bool(folders) and set(folders) <= ours)
