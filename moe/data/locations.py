"""From a name to the folder it stands for: a path on this machine, or s3://bucket/prefix."""

from __future__ import annotations

from pathlib import Path

from moe.common.paths import path_or_address
from moe.data.folders import Folder, LocalFolder


def open_folder(name: str | Path) -> Folder:
    """The folder of a path or an s3:// address. Raises InputError for an address of another kind."""
    found = path_or_address(name, "the folder")
    if not found.startswith("s3://"):
        return LocalFolder(found)
    from moe.data.s3 import S3Folder

    return S3Folder.parse(found)
