"""What is shown to people: numbers as they read them, and one line at a time."""

import contextlib
import os
import sys

from moe.environment import is_silent


def short(count: float) -> str:
    """1234567 -> '1.23M'."""
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


def drop_stdout() -> None:
    """For a reader that has gone, as `| head`: Python flushes stdout at exit, which would fail once more."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def say(line: str) -> None:
    """Prints one line, on rank 0 only. A terminal or pipe that has gone away does not end a run."""
    if is_silent():
        return
    try:
        print(line, flush=True)
    except (OSError, ValueError):  # a closed pipe or terminal, a full disk under a log
        drop_stdout()


def complain(line: str) -> None:
    """Prints an error on stderr, on any rank; as `say`, it never ends a run."""
    with contextlib.suppress(OSError, ValueError):
        print(f"\nerror: {line}", file=sys.stderr, flush=True)
