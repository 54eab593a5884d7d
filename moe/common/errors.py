"""Errors that end in one message. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import moe

MOST_WORDS = 1000  # characters


class InputError(ValueError):
    """A setting, flag, path or file that cannot be used. The message names it, its value and the fix. Exit code 2."""


class RunFailed(RuntimeError):
    """Training cannot continue, and the input is valid. The message says why and the fix. Exit code 1.

    of_one_rank: the others have not met it.
    """

    of_one_rank = False
    exit_code = 1


class Unreachable(RunFailed):
    """A start needs what does not answer now and may later. The message names it. Exit code 75: run it again."""

    exit_code = 75


@contextmanager
def library_errors(library: str, about: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Makes one message of whatever `library` raises within it; an error out of our own code stays what it is.

    about: the flag or setting that asked for it, and its value. but: errors that the caller reports itself.

    Raises:
        InputError: with the library's words.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, (InputError, RunFailed, MemoryError, *but)):
            raise
        innermost = error.__traceback__
        while innermost is not None and innermost.tb_next is not None:
            innermost = innermost.tb_next
        file = innermost.tb_frame.f_code.co_filename if innermost is not None else ""
        if Path(file).resolve().is_relative_to(Path(moe.__file__).resolve().parent):
            raise  # a bug of ours
        words = " ".join(str(error).split())[:MOST_WORDS] or "no reason is given"
        raise InputError(f"{about}: {library} cannot do it ({type(error).__name__}: {words})") from error


class DataError(RunFailed):
    """Training data that is missing, damaged or not what it says, met while reading it. The message names the file."""

    of_one_rank = True

    def __init__(self, text: str) -> None:
        # a loader worker's error comes wrapped in its traceback, as text: its last line is the message
        super().__init__(text.rpartition("DataError: ")[2].strip())
