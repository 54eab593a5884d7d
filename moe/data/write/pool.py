"""Run the items of a conversion: in this process with one worker, else one spawned process a worker, one thread
each.

- A worker whose parent dies exits at once (kill -9 leaves no orphan that keeps writing).
- A worker that dies closes its pipe, whenever that is: one place to see it. (concurrent.futures looks after its
  processes in a thread, which a death while others still start sets against the thread that starts them.)
- A file that cannot be read is reported, not raised: the others continue. At some damaged files the library that reads
  them ends the process (pyarrow, SIGABRT): a worker notes which file it is at, so its parent can name it.
- Items come as they are planned: None among them says that there is none at this moment.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

from moe.common.errors import InputError
from moe.data.folders import Folder
from moe.data.shared_value import SharedValue
from moe.data.text.encoders import settle_process
from moe.data.text.errors import WITHOUT_A_FILE, BadFileError
from moe.data.text.files import Unit
from moe.data.write.items import Item, convert_item
from moe.data.write.unit import Job

ASK_AGAIN_S = 0.1
LAST_S = 5.0  # that a dead process may take until it says of what
CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def add(counter: Any, tokens: int, weight: int, documents: int) -> None:
    with counter.get_lock():
        counter[0] += tokens
        counter[1] += weight
        counter[2] += documents


def counted(counter: Any) -> list[int]:
    """Tokens, weight and documents; without the lock, which a worker may have been killed with."""
    return counter.get_obj()[:]


class _InWorker(Exception):
    """The traceback of a worker's error, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _work(channel: Connection, work: SharedValue[tuple[Job, Folder]], counter: Any, at: Any) -> None:
    """A worker: takes items, answers each by (its files' errors, None) or (what it raised, its traceback). `at` holds
    the number of the file that it reads.
    """
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    job, folder = work.get()
    settle_process()

    def begun(unit: Unit) -> None:
        at.value = unit.file_index

    while True:
        try:
            item = channel.recv()
        except EOFError:  # there is nothing left for this one
            return
        try:
            errors = convert_item(job, item, folder, lambda *made: add(counter, *made), begun)
            answer: tuple[list[BadFileError] | Exception, str | None] = errors, None
        except Exception as error:
            answer = error, traceback.format_exc()
        channel.send(answer)


class _Worker:
    """The parent's side of one worker. Raises InputError where the worker is dead."""

    def __init__(self, *shared: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.channel, theirs = context.Pipe()
        self._at: Any = context.RawValue("q", -1)
        self._item: Item | None = None
        self._process = context.Process(target=_work, args=(theirs, *shared, self._at))
        self._process.start()
        theirs.close()  # open in the worker alone: its death is the end of the channel

    def give(self, item: Item) -> None:
        self._item, self._at.value = item, -1
        try:
            self.channel.send(item)
        except OSError as error:
            raise self._died() from error

    def take(self) -> list[BadFileError]:
        """Its files' errors; raises what the worker raised."""
        try:
            answer, its_traceback = self.channel.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if its_traceback:
            raise answer from _InWorker(its_traceback)
        return answer

    def _died(self) -> InputError:
        self._process.join(LAST_S)
        number = -(self._process.exitcode or 0)
        if number in CRASHES and self._item is not None:
            names = [unit.file.name for unit in self._item.units if unit.file_index == self._at.value]
            at = f" while it read {names[0]}" if names else ""
            return InputError(
                f"a worker process was ended by {signal.Signals(number).name}{at}, most often by the library that "
                "reads the file, at damaged bytes, which --skip-bad-files alone cannot pass over: fetch the file "
                f"again, or {WITHOUT_A_FILE}, and run the same command; what is done is kept"
            )
        return InputError(
            "a worker process died, most often for lack of memory; what is done is kept: "
            "run the same command with fewer --workers"
        )


def _start_workers(number: int, *shared: Any) -> list[_Worker]:
    # Ctrl+C reaches the process group; a worker starts with it ignored, or a traceback would end its imports
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return [_Worker(*shared) for _ in range(number)]
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def new_counter() -> Any:
    """Tokens, weight and documents made, shared between processes."""
    return multiprocessing.get_context("spawn").Array("q", 3)


def run_units(
    job: Job,
    items: Iterable[Item | None],
    folder: Folder,
    *,
    workers: int,
    counter: Any,
    finished: Callable[[Item, list[BadFileError]], bool],
) -> None:
    """Convert items in order; `finished(item, errors of its files)` after each says whether to continue.

    Raises InputError when a worker dies.
    """
    if workers == 1:
        settle_process()
        for item in items:
            if item is None:
                time.sleep(ASK_AGAIN_S)
            elif not finished(item, convert_item(job, item, folder, lambda *made: add(counter, *made))):
                return
        return
    todo = iter(items)
    running: dict[Any, tuple[_Worker, Item]] = {}
    waiting: list[_Worker] = []  # for an item that is still to be planned

    def give_next(worker: _Worker) -> None:
        for item in itertools.islice(todo, 1):
            if item is None:
                waiting.append(worker)
            else:
                running[worker.channel] = worker, item
                worker.give(item)

    try:
        for worker in _start_workers(workers, SharedValue((job, folder)), counter):
            give_next(worker)
        while running or waiting:
            for channel in connection.wait(list(running), ASK_AGAIN_S if waiting else None):
                worker, item = running.pop(channel)
                if not finished(item, worker.take()):
                    return
                waiting.append(worker)
            for _ in range(len(waiting)):
                give_next(waiting.pop(0))
    finally:
        for process in multiprocessing.active_children():
            process.terminate()
            process.join()
