"""Paths as people write them, made into paths of this machine: one function for every flag and setting.

- `~` is the home folder also where no shell has seen it: in yaml, in key=value, in quotes.
- An address (s3://, hf://, file://) where a folder of this machine is needed is refused. `Path` makes `s3:/x` of
  `s3://x`, so one slash is enough to tell.
- Every other character stays as it is, bytes that are not UTF-8 among them.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from pathlib import Path

from moe.common.errors import InputError

MOST_NAME, MOST_PATH = 255, 4095  # bytes, on Linux and macOS (there a path has fewer)
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(value: str | os.PathLike[str], name: str) -> Path:
    """`value`, which the flag or setting `name` gives, as a path of this machine.

    Raises:
        InputError: it is an address, empty, of a user that is not known, holds a NUL, or is too long.
    """
    text = os.fspath(value)
    if ADDRESS.match(text):
        raise InputError(f"{name} ({text}) must be a path on this machine, not an address; write there and upload that")
    return Path(expanded(text, name))


def path_or_address(value: str | os.PathLike[str], name: str) -> str:
    """As `local_path`, where s3://bucket/prefix is as good."""
    text = os.fspath(value)
    if text.startswith("s3://"):
        return text
    if ADDRESS.match(text):
        raise InputError(f"{name} ({text}): a path or s3://bucket/prefix is needed")
    return expanded(text, name)


def refuse_unwritable(folder: Path, about: str) -> None:
    """Call before the work whose result goes below `folder`; leaves all as it is.

    about: the flag or setting, and its value.

    Raises:
        InputError: no file can be made in `folder` or, where it is not there, in what is there of the folders above it.
    """
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(parent))
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        cause = f"{place} is not a folder" if isinstance(error, NotADirectoryError) else f"{place}: {error.strerror}"
        raise InputError(f"{about} cannot be written ({cause}); give another place") from None


def data_address(text: str, name: str) -> str:
    """An address of converted data. Raises InputError for one that Streaming, to which it is a URL, would cut."""
    if found := re.search("[#?]", text):
        raise InputError(
            f"{name} ({text}): Streaming, which reads the data, cuts an address at '{found[0]}'; "
            "give the folder a name without it"
        )
    return text


def refuse_irregular(path: Path) -> None:
    """Call before a file is opened that a reader would wait for: a pipe that nobody writes into has no end.

    Raises:
        OSError: it is a pipe, a socket or a device; or as `stat` does. A folder is reported by what opens it.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "a pipe, socket or device, no regular file", str(path))


def expanded(text: str, name: str) -> str:
    """`text` with the home folder in the place of `~`. Raises InputError for one that cannot be a path."""
    if not text.strip() or "\0" in text:
        raise InputError(f"{name} ({text!r}) is not a path; give one, or leave {name} out")
    if re.match(r"~(/|$)", text) and not os.environ.get("HOME", "x").strip():
        raise InputError(f"{name} ({text}): the environment's HOME is empty; set it, or write the path in full")
    if max(len(os.fsencode(part)) for part in text.split("/")) > MOST_NAME or len(os.fsencode(text)) > MOST_PATH:
        raise InputError(
            f"{name} ({text[:40]}...) is too long: names of files have at most {MOST_NAME} bytes, paths {MOST_PATH:,}"
        )
    found = os.path.expanduser(text)
    if found == text and re.match(r"~[^/]*(/|$)", text):
        raise InputError(
            f"{name} ({text}): there is no home folder of {text.split('/')[0]}; write the path in full, "
            f"or ./{text} for a folder of that name"
        )
    return found
