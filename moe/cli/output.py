"""Where a command's result goes is tried before the work that makes it."""

from __future__ import annotations

import os
from pathlib import Path

from moe.common.errors import InputError
from moe.common.paths import refuse_unwritable

RESULT_BEGINS = b'{\n "step": '  # what `moe eval --output` writes


def check_writable(flag: str, path: Path, begins: bytes) -> None:
    """Whether the file `path` of `flag` can be written, its folders made where they are not there; leaves all as it is.

    begins: as all results of this kind do; a file that is there and does not is somebody else's.

    Raises:
        InputError: it is a folder, holds something else, or cannot be written.
    """
    if path.is_dir():
        raise InputError(f"{flag} ({path}) is a folder; give the name of a file, e.g. {path / 'results.json'}")
    if not os.path.lexists(path):
        return refuse_unwritable(path.parent, f"{flag} ({path})")
    if not path.is_file():  # a pipe, /dev/stdout
        return None
    try:
        with open(path, "r+b") as file:
            if file.read(len(begins)) not in (begins, b""):
                raise InputError(f"{flag} ({path}) is there and holds something else; give another file")
    except OSError as error:
        raise InputError(f"{flag} ({path}) cannot be written ({error.strerror}); give another file") from None
