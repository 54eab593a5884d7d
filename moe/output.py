"""What a command prints, where nobody may be reading: `... | head -3` has read enough."""

from __future__ import annotations

import os
import sys


def drop_stdout() -> None:
    """Python flushes stdout at exit, which would fail once more."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def say(line: str) -> None:
    """A line for whoever still reads: work of minutes goes on when its output is closed or cannot be written."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        drop_stdout()
    except OSError as error:
        drop_stdout()
        print(f"warning: the output cannot be written ({error.strerror}); going on without it", file=sys.stderr)
