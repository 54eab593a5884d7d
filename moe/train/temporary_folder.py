"""A temporary folder of the run's own, so that a killed run leaves nothing behind that the next start does not clear.

Streaming's lock files and the sockets of loader workers lie in the temporary folder, and a killed process cannot remove
them. Here they lie in `moe-{run id}-{hash}` inside it, emptied at each start and removed at the end. The hash is of
the run folder's path: a copy of a run trains beside it, with the same id; and of the machine's name where there are
several, whose TMPDIR may be one folder on a shared filesystem. The folder carries our mark (moe/common/ownership.py);
one of that name without it is moved out of the way, with a line.

/tmp is used where TMPDIR is so long that a socket's address would exceed Linux's 107 bytes: a loader worker would then
wait for ever.
"""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import multiprocessing.process
import os
import re
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from composer.utils import dist

from moe.common import ownership
from moe.common.errors import InputError
from moe.common.units import say
from moe.train.distributed.ranks import MACHINES
from moe.train.stop import TEMPORARY, StopSignal, remove_temporary

WORKERS_END = 1.0  # seconds
LONGEST = 107 - len("/pymp-12345678/listener-12345678")


def folder_for(run_folder: Path, run_id: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", run_id):  # it stands in a file, and what it names is emptied
        raise InputError(f"{run_folder}/run.json: its id ({run_id!r}) must be letters and digits; restore the file")
    machine = os.uname().nodename if MACHINES > 1 else ""
    digest = hashlib.sha256(os.fsencode(run_folder.resolve()) + machine.encode()).hexdigest()[:8]
    own = os.path.join(tempfile.gettempdir(), f"moe-{run_id}-{digest}")
    return own if len(os.fsencode(own)) <= LONGEST else f"/tmp/{os.path.basename(own)}"


@contextmanager
def temporary_folder(run_folder: Path, run_id: str, stop: StopSignal, *, leader: bool) -> Iterator[None]:
    """Within it `tempfile` and children use the run's own folder. `leader`: makes it, on one rank per machine."""
    before, outer, own = os.environ.get("TMPDIR"), tempfile.gettempdir(), folder_for(run_folder, run_id)
    if leader:
        _refuse_foreign(own)
        _clear(Path(own))
        os.makedirs(own, mode=0o700)
        ownership.begin(Path(own), TEMPORARY)
        stop.temporary = own
    dist.barrier()
    os.environ["TMPDIR"] = tempfile.tempdir = own
    others = multiprocessing.active_children()
    try:
        yield
    finally:
        tempfile.tempdir = outer
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
        _end_workers(others)
        if leader:
            remove_temporary(Path(own))


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """For one process that takes a few steps: Streaming leaves lock files in the temporary folder, within this in one
    that goes.
    """
    outer = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="moe-", ignore_cleanup_errors=True) as own:
        tempfile.tempdir = own
        try:
            yield
        finally:
            tempfile.tempdir = outer


def _refuse_foreign(own: str) -> None:
    """Raises InputError where the name stands for what is not a folder of this user's, or lies elsewhere."""
    with suppress(FileNotFoundError):
        found = os.lstat(own)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise InputError(f"{own}: is in the way of the run's temporary folder; remove it, or set TMPDIR")


def _clear(own: Path) -> None:
    """Takes away what a killed run has left under this name."""
    remove_temporary(own)
    if not os.path.lexists(own):
        return
    count = 1
    while os.path.lexists(aside := own.with_name(f"{own.name}-left-{count}")):
        count += 1
    try:
        own.rename(aside)
    except OSError as error:
        raise InputError(f"{own}: is in the way of the run's temporary folder ({error.strerror}); remove it") from None
    say(f"{own}: was not made by a run, or cannot be removed; it stays as {aside}")


def _end_workers(others: list[multiprocessing.process.BaseProcess]) -> None:
    """No loader worker outlives the run, except `others`, which were there before.

    After an error a traceback still holds the loader: its workers would wait for work for ever, the process for them.
    """
    gc.collect()  # a loader that nothing refers to any more ends its workers
    end = time.monotonic() + WORKERS_END
    while (left := set(multiprocessing.active_children()) - set(others)) and time.monotonic() < end:
        time.sleep(0.02)
    if not left:
        return
    raises = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise here
    try:
        for worker in left:
            worker.kill()
            worker.join()
    finally:
        signal.signal(signal.SIGCHLD, raises)
