"""Faults of one source file, kept apart from other input errors: the run goes on with the other files."""

from __future__ import annotations

from moe.errors import InputError


class BadFileError(InputError):
    """A file that cannot be read. The conversion makes the others' units and stops before the merge."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason

    def __reduce__(self) -> tuple:
        return BadFileError, (self.file, self.reason)
