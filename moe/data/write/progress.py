"""A line on stderr while tokens flow:

tokens, rate, share, time left, bytes. Rewritten on a terminal, else one every 10 s.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from moe.common.units import note, redraw


def human(number: float) -> str:
    """12345678 -> 12.3M"""
    for unit in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5 or unit == "T":
            return (
                f"{number:.0f}{unit}"
                if unit == ""
                else f"{number:.{max(0, 2 - len(str(int(abs(number)))) + 1)}f}{unit}"
            )
        number /= 1000
    raise AssertionError


def clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Drawn:
    """`line(seconds)` drawn by a thread until the block ends, and then once more.

    briefly: False for a block that says nothing where it ends before the first line is due.
    """

    def __init__(self, line: Callable[[float], str], *, briefly: bool = True) -> None:
        self._line, self._due = line, briefly
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Drawn:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._due:
            self._draw()
            if self._terminal:
                note("")

    def _run(self) -> None:
        while not self._stop.wait(0.5 if self._terminal else 10):
            self._due = True
            self._draw()

    def _draw(self) -> None:
        line = self._line(max(1e-9, time.monotonic() - self._start))
        redraw(line) if self._terminal else note(line)


class Progress(Drawn):
    """`read()` gives (tokens made now, share done 0..1, share done before this run)."""

    def __init__(self, read: Callable[[], tuple[int, float, float]], *, token_bytes: int) -> None:
        super().__init__(self._tokens_line)
        self._read, self._token_bytes = read, token_bytes

    def _tokens_line(self, seconds: float) -> str:
        tokens, share, before = self._read()
        gained = share - before
        left = clock(seconds * (1 - share) / gained) if gained > 0 else "?"
        return (
            f"{share:4.0%}  {human(tokens)} tokens  {human(tokens / seconds)} tokens/s  "
            f"{human(tokens * self._token_bytes)}B  {clock(seconds)} done, {left} left"
        )


class Verifying(Drawn):
    """How much of `total` bytes has been read; `add` may be called by several threads."""

    def __init__(self, total: int) -> None:
        super().__init__(self._bytes_line, briefly=False)
        self._total, self._read, self._lock = max(1, total), 0, threading.Lock()

    def __enter__(self) -> Verifying:
        super().__enter__()
        return self

    def add(self, count: int) -> None:
        with self._lock:
            self._read += count

    def _bytes_line(self, seconds: float) -> str:
        share = min(1.0, self._read / self._total)
        left = clock(seconds * (1 - share) / share) if share > 0 else "?"
        return (
            f"{share:4.0%}  {human(self._read)}B of {human(self._total)}B verified  {human(self._read / seconds)}B/s  "
            f"{clock(seconds)} done, {left} left"
        )
