"""Errors of one source file, kept apart from other input errors: the run continues with the other files."""

from __future__ import annotations

from moe.common.errors import InputError

NO_ROWS = "the file has no rows; fetch it again"
# the places of files count: they are in the names of what is done
WITHOUT_A_FILE = "do without it by an empty file in its place and --skip-bad-files"


class BadFileError(InputError):
    """A file that cannot be read. The conversion makes the others' units and stops before the merge."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason

    def __reduce__(self) -> tuple:
        return BadFileError, (self.file, self.reason)


def errors_text(errors: list[BadFileError], *, skipping: bool) -> str:
    lines = [f"{len(errors)} file{'s' if len(errors) > 1 else ''} cannot be used:"]
    lines += [f"  {error}" for error in errors[:20]]
    if len(errors) > 20:
        lines.append(f"  and {len(errors) - 20} more")
    if not skipping:
        lines.append("Fix them and run the same command again, or add --skip-bad-files to continue without them.")
    return "\n".join(lines)
