"""What is shown to people: numbers as they read them, and lines on the console.

Nothing else prints (a test holds it). No character, encoding, closed pipe or full disk can stop a line or the work:
- Control characters, of file names, a hub's answers, generated text, never reach a terminal: each becomes `?`.
- What the console's encoding does not have is written as an escape, such as backslash u4e2d.
- To a reader that has gone, as in `| head -1`, nothing more is written. The work continues, and its exit code is its
  own.
"""

import contextlib
import os
import re
import sys
from typing import Any, TextIO

from moe.common.environment import is_silent

UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # C0, C1, bidi, surrogates


def short(count: float) -> str:
    """1234567 -> '1.23M'."""
    count = float(f"{count:.3g}")  # first: 999,700,000 is 1B and not 1e+03M
    if count >= 1e15:
        return f"{count / 1e12:,.0f}T"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.3g}"


def size(count: float) -> str:
    """4238000000 -> '4.24 GB'; below a tenth of one in MB."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def clock(seconds: float) -> str:
    """3725 -> '1h02m'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s"


def clean(text: str) -> str:
    """`text` without what a terminal would obey or no encoding has: `?` in its place. Line ends and tabs stay."""
    return UNSAFE.sub("?", text)


def clean_line(text: str) -> str:
    """As `clean`, on one line: for names and paths."""
    return re.sub(r"[\t\n]", "?", clean(text))


def printable(text: str) -> str:
    """As `clean_line`, with escapes: names that differ stay different, and bytes that are no UTF-8 can be read."""
    return re.sub(rf"{UNSAFE.pattern}|[\t\n]", _escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])  # a byte of a file's name that is no UTF-8 stands here as a surrogate (PEP 383)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else found[0].encode("unicode_escape").decode()


def ready() -> None:
    """At the start of a command: what libraries print is stopped by no character either."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # replaced by something else, or closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def show(text: Any = "", *, end: str = "\n", to: TextIO | None = None) -> None:
    """Writes what a command was asked for to stdout. Raises OSError where that is a file on a full disk.

    to: the stdout there was, while another is in its place.
    """
    _write("stdout", clean(str(text)) + end, to)


def tell(text: Any, *, end: str = "\n", to: TextIO | None = None) -> None:
    """As `show`, for how far the work is: it continues where nobody can read that."""
    with contextlib.suppress(OSError):
        show(text, end=end, to=to)


def note(text: Any, *, end: str = "\n") -> None:
    """Writes to stderr, on any rank: warnings, refusals, progress."""
    with contextlib.suppress(OSError):
        _write("stderr", clean(str(text)) + end)


def redraw(text: str, *, end: str = "") -> None:
    """Writes over the last line of stderr, which is a terminal."""
    with contextlib.suppress(OSError):
        _write("stderr", f"\r\x1b[K{clean_line(text)}{end}")


def say(line: str) -> None:
    """`tell` on rank 0 only: what a run of several ranks tells once."""
    if not is_silent():
        tell(line)


def complain(line: str) -> None:
    """An error of a run on stderr, on any rank, apart from the lines above it."""
    note(f"\nerror: {line}")


def _write(name: str, text: str, to: TextIO | None = None) -> None:
    stream: TextIO | None = to or getattr(sys, name)
    if stream is None:  # closed before the start
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        with contextlib.suppress(LookupError):
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        stream.write(text)
        stream.flush()
    except (BrokenPipeError, ValueError):  # its reader has gone; it was closed
        drop(name)
    except OSError:  # a full disk, a terminal that is no more
        drop(name)
        raise


def drop(name: str) -> None:
    """For a reader of `name` (stdout, stderr) that has gone: Python flushes at exit, which would fail once more."""
    setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def flush() -> None:
    """Writes what libraries have left in stdout. Raises OSError as `show` does."""
    _write("stdout", "")
