"""Which file it was, where the library that reads files ends the process (pyarrow aborts at some damaged bytes).

Python's own handlers run between two steps of Python, of which none comes any more. So this is a handler of C's, which
calls Python in the thread that crashed: a thread that reads a file says its name, and the process ends with exit code
2. In any other thread, and in workers, whose parent names the file (write/pool.py), all is as it was.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
LONGEST_S = 5  # to say it: a crash inside of malloc holds its lock
_names = threading.local()
_before: dict[int, int | None] = {}  # C's handlers
_installing = threading.Lock()


def crash_text(number: int, who: str, at: str) -> str:
    return (
        f"{who} was ended by {signal.Signals(number).name}{at}, most often by the library that "
        "reads the file, at damaged bytes: fetch the file again, or remove it (--skip-bad-files cannot pass "
        "over it), and run the same command again; what is done is kept"
    )


@contextmanager
def reading(name: str) -> Iterator[None]:
    """This thread reads the file of this name."""
    _install()
    names = _names.__dict__.setdefault("stack", [])
    names.append(name)
    try:
        yield
    finally:
        names.remove(name)


def _install() -> None:
    if _before or multiprocessing.parent_process() is not None:
        return
    with _installing:
        if not _before:
            for number in CRASHES:
                _before[number] = _libc().signal(number, _handler)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    return libc


@HANDLER
def _crashed(number: int) -> None:
    names = _names.__dict__.get("stack")
    if names and multiprocessing.parent_process() is None:  # a forked worker has this handler, too
        _libc().signal(signal.SIGALRM, None)
        signal.alarm(LONGEST_S)
        os.write(2, f"error: {crash_text(number, 'this process', f' while it read {names[-1]}')}\n".encode())
        os._exit(2)
    _libc().signal(number, _before[number])
    signal.raise_signal(number)  # which waits until this has returned


_handler = ctypes.cast(_crashed, ctypes.c_void_p)
