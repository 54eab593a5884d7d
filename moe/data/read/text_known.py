"""What a run's folder keeps of its text for later starts.

text_files.json    the samples of its files: a later start reads only those that have changed since. They may save
                   work and decide nothing: what is missing, damaged or of other files costs the reading alone
text_commit.json   of a hub dataset, as it was asked for, the commit: a later start that asks the same takes that one
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from moe.common.typed_json import parse_json
from moe.data.text.content import Known, known_of
from moe.data.text.files import SourceFile

NAME, COMMIT = "text_files.json", "text_commit.json"


class _Commit(TypedDict):
    asked: dict[str, Any]
    commit: str


def write_known(folder: Path, files: Sequence[SourceFile]) -> None:
    """Raises OSError where it cannot be written."""
    rows = [[file.kind, file.version, list(file.stat)] for file in files if file.stat]
    (folder / NAME).write_text(json.dumps(rows) + "\n")


def read_known(folder: Path) -> Known:
    try:
        rows = parse_json((folder / NAME).read_bytes(), list[list[Any]])
        return known_of((kind, version, found) for kind, version, found in rows if isinstance(version, str))
    except (OSError, ValueError, TypeError):
        return {}


def write_commit(folder: Path, asked: dict[str, Any], commit: str | None) -> None:
    """commit: None where the text is not of the hub. Raises OSError."""
    if commit is None:
        (folder / COMMIT).unlink(missing_ok=True)
    else:
        (folder / COMMIT).write_text(json.dumps(_Commit(asked=asked, commit=commit)) + "\n")


def read_commit(folder: Path, asked: dict[str, Any]) -> str | None:
    """What a start that asked for the same had; None where nothing tells."""
    try:
        found = parse_json((folder / COMMIT).read_bytes(), _Commit)
    except (OSError, ValueError):
        return None
    return found["commit"] if found["asked"] == asked and re.fullmatch(r"[0-9a-f]{40}", found["commit"]) else None
