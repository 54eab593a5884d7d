"""Run the unit function over units: in this process with one worker, else one spawned process a worker, one thread
each.

- A worker whose parent dies exits at once (kill -9 leaves no orphan that keeps writing).
- A unit whose file cannot be read is reported, not raised: the others continue.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any

from moe.common.errors import InputError
from moe.data.folders import Folder
from moe.data.shared_value import SharedValue
from moe.data.text.encoders import settle_process
from moe.data.text.errors import BadFileError
from moe.data.text.files import Unit
from moe.data.write.unit import Job, convert_unit

_job: Job
_folder: Folder
_counter: Any


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _start_worker(work: SharedValue[tuple[Job, Folder]], counter: Any) -> None:
    global _job, _folder, _counter
    _job, _folder = work.get()
    _counter = counter
    settle_process()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def add(counter: Any, tokens: int, weight: int, documents: int) -> None:
    with counter.get_lock():
        counter[0] += tokens
        counter[1] += weight
        counter[2] += documents


def _run(unit: Unit) -> BadFileError | None:
    try:
        convert_unit(_job, unit, _folder, lambda *made: add(_counter, *made))
    except BadFileError as error:
        return error
    return None


def new_counter() -> Any:
    """Tokens, weight and documents made, shared between processes."""
    return multiprocessing.get_context("spawn").Array("q", 3)


def run_units(
    job: Job,
    units: Iterable[Unit],
    folder: Folder,
    *,
    workers: int,
    counter: Any,
    finished: Callable[[Unit, BadFileError | None], bool],
) -> None:
    """Convert units in order; `finished(unit, fault)` after each says whether to continue.

    Raises InputError when a worker dies.
    """
    todo = iter(units)
    if workers == 1:
        settle_process()
        for unit in todo:
            fault = None
            try:
                convert_unit(job, unit, folder, lambda *made: add(counter, *made))
            except BadFileError as error:
                fault = error
            if not finished(unit, fault):
                return
        return
    context = multiprocessing.get_context("spawn")
    work = SharedValue((job, folder))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(work, counter))
    running: dict[Future, Unit] = {}
    try:
        going = True
        while going:
            # Ctrl+C reaches the process group; a worker starts with it ignored, or a traceback would end its imports
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                for following in itertools.islice(todo, 2 * workers - len(running)):
                    running[pool.submit(_run, following)] = following
                pool.submit(int)  # the pool looks at a worker's death from the submit after the one that started it
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                going = finished(running.pop(future), future.result()) and going
        pool.shutdown(wait=False, cancel_futures=True)
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process died, most often for lack of memory; what is done is kept: "
            "run the same command with fewer --workers"
        ) from error
    finally:
        for process in multiprocessing.active_children():
            process.terminate()
            process.join()
