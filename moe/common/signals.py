"""Signals while a library computes for minutes in one call: a handler of Python would run when that has returned."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from moe.common.units import note

CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}  # exit codes


@contextmanager
def ended_by_signals(words: str) -> Iterator[None]:
    """Within it SIGTERM and Ctrl+C end the process at once, with `words` on stderr. For work that has written nothing,
    which no `finally` has to remove. Outside of the main thread it does nothing.

    What Python notes of a signal in C, before its handler, goes to a pipe that a thread reads. One that it has no
    handler for ends the process by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        while number := os.read(reader, 1)[0]:
            if number in CODES:
                note(words)
                os._exit(CODES[signal.Signals(number)])

    watching = threading.Thread(target=watch, name="signals", daemon=True)
    watching.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, b"\0")
        watching.join()
        os.close(reader)
        os.close(writer)
