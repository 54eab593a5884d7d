"""Where a command's result goes is tried before the work that makes it."""

from __future__ import annotations

import os
from pathlib import Path

from moe.common.errors import InputError
from moe.common.paths import refuse_unwritable


def check_writable(flag: str, path: Path) -> None:
    """Whether the file `path` of `flag` can be written, its folders made where they are not there; leaves all as it is.

    Raises:
        InputError: it is a folder, or cannot be written.
    """
    if path.is_dir():
        raise InputError(f"{flag} ({path}) is a folder; give the name of a file, e.g. {path / 'results.json'}")
    if not os.path.lexists(path):
        return refuse_unwritable(path.parent, f"{flag} ({path})")
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise InputError(f"{flag} ({path}) cannot be written ({error.strerror}); give another file") from None
