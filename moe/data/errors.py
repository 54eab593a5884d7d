"""Faults of the input, which the person at the keyboard can mend. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

from moe.errors import InputError

__all__ = ["BadFileError", "InputError"]


class BadFileError(InputError):
    """One source file cannot be read. The run goes on with the others and stops before the merge."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason

    def __reduce__(self) -> tuple:
        return BadFileError, (self.file, self.reason)
