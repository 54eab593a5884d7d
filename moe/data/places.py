"""From a name to the folder it stands for: a path on this machine, or s3://bucket/prefix."""

from __future__ import annotations

from pathlib import Path

from moe.data.folders import Folder, LocalFolder
from moe.errors import InputError


def open_folder(name: str | Path) -> Folder:
    """The folder of a path or an s3:// address. Raises InputError for an address of another kind."""
    if "://" not in str(name):
        return LocalFolder(name)
    if not str(name).startswith("s3://"):
        raise InputError(f"{name}: a path or s3://bucket/prefix is needed; write to a path and upload that")
    from moe.data.s3 import S3Folder

    return S3Folder.parse(str(name))
