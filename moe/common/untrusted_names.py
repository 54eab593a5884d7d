"""Names from outside: keys of a bucket, file names in an index or a manifest, a hub's listing, ids in a record.

- A name is not a path. It becomes one here or nowhere, and only where it stays below the folder that it belongs to.
- Who may write the name may be somebody else than who runs the command. What no file of ours is called is refused
  and not repaired: a repaired name could be that of another file.
- Links that lie in a folder are its owner's: no name from outside can make one.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from moe.common.errors import InputError

LONGEST = 255  # bytes of one part, on every usual file system


class OutsideName(InputError):
    """A name from outside that cannot be a file's name."""


def name_error(name: str) -> str | None:
    """Why `name`, with `/` between its parts, is no name of a file below a folder; None where it is one."""
    if any(unicodedata.category(character) == "Cc" for character in name):
        return "it holds control characters"
    if name.startswith("/"):
        return "it is an absolute path"
    if "\\" in name:
        return "it holds a backslash"
    parts = name.split("/")
    if ".." in parts:
        return "it leads out of its folder ('..')"
    if "" in parts or "." in parts:
        return "a part of it is empty"
    try:
        too_long = any(len(os.fsencode(part)) > LONGEST for part in parts)
    except UnicodeEncodeError:
        return "it is no text"
    return f"a part of it is longer than {LONGEST} bytes" if too_long else None


def file_name(name: str, where: str) -> str:
    """`name`, which is one of a file below some folder.

    where: what held the name, for the message. Raises OutsideName for any other.
    """
    if error := name_error(name):
        shown = name if len(name) <= 200 else f"{name[:200]}..."
        raise OutsideName(
            f"{where}: the name {shown!r} is refused, {error}; whoever made this must rename or remove it"
        )
    return name


def plain_name(name: str, where: str) -> str:
    """As `file_name`, of one part: an id, which stands in a name of ours."""
    if "/" in name:
        raise OutsideName(f"{where}: the name {name[:200]!r} is refused, it holds a '/'; restore it or remove it there")
    return file_name(name, where)


def path_below(root: Path, name: str, where: str) -> Path:
    """The path of `name` below `root`. Raises OutsideName."""
    return root / file_name(name, where)
