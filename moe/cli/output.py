"""Where a command's result goes is tried before the work that makes it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from moe.common.errors import InputError


def check_writable(flag: str, path: Path) -> None:
    """Whether the file `path` of `flag` can be written, its folders made where they are not there; leaves all as it is.

    Raises:
        InputError: it is a folder, or cannot be written.
    """
    if path.is_dir():
        raise InputError(f"{flag} ({path}) is a folder; give the name of a file, e.g. {path / 'results.json'}")
    place = next(parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent))
    try:
        if place == path:
            with open(path, "ab"):
                pass
        else:
            with tempfile.TemporaryFile(dir=place):
                pass
    except OSError as error:
        cause = f"{place} is not a folder" if isinstance(error, NotADirectoryError) else error.strerror
        raise InputError(f"{flag} ({path}) cannot be written ({cause}); give another file") from None
