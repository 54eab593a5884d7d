"""The samples of a run's text files, kept in its folder: a later start reads only files that have changed since.

It may save work and decides nothing: one that is missing, damaged or of other files costs the reading alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe.common.typed_json import parse_json
from moe.data.text.content import Known, known_of
from moe.data.text.files import SourceFile

NAME = "text_files.json"


def write_known(folder: Path, files: list[SourceFile]) -> None:
    """Raises OSError where it cannot be written."""
    rows = [[file.kind, file.version, list(file.stat)] for file in files if file.stat]
    (folder / NAME).write_text(json.dumps(rows) + "\n")


def read_known(folder: Path) -> Known:
    try:
        rows = parse_json((folder / NAME).read_bytes(), list[list[Any]])
        return known_of((kind, version, found) for kind, version, found in rows if isinstance(version, str))
    except (OSError, ValueError, TypeError):
        return {}
