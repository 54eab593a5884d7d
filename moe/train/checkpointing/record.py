"""run.json of a run folder: read, here or on the remote, and written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, TypedDict

from moe.common.errors import InputError
from moe.common.s3 import RemoteFolder
from moe.common.typed_json import parse_json

RUN_FILE = "run.json"
LOGS_MISSING = "logs_missing"  # in it: a start has it from the remote, and the logs are not here yet


class Record(TypedDict):
    """What a start reads in run.json."""

    id: str
    run_name: str
    wandb_id: str | None
    session: str | None
    went_back_to: int | None


def read_record(path: Path, store: RemoteFolder | None) -> tuple[dict[str, Any], bool]:
    """run.json, and whether it is the remote's: another machine has trained this run since, this one never has, or a
    start here has ended before it had the logs.

    Raises:
        InputError: it is damaged.
    """
    try:
        mine = _checked((path / RUN_FILE).read_bytes(), path / RUN_FILE)
    except (FileNotFoundError, NotADirectoryError):
        mine = {}
    content = store.read(RUN_FILE) if store is not None else None
    if store is None or content is None:
        return mine, store is not None and not mine
    there = _checked(content, f"{store.url}/{RUN_FILE}")
    if mine and LOGS_MISSING not in mine and there.get("session") in (None, mine.get("session")):
        return mine, False
    return there, True


def _checked(content: bytes, where: object) -> dict[str, Any]:
    """The id names a folder that a start empties: nothing else may stand there."""
    try:
        record = parse_json(content, Record)
        if re.fullmatch(r"[0-9a-f]{8}", record["id"]) is None:
            raise ValueError(f"id is {record['id']!r:.60}; 8 hexadecimal digits are needed")
    except ValueError as error:
        raise InputError(f"{where}: is damaged ({error}); restore or remove it") from None
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes aside and renames, so that a reader or a kill never meets half a file."""
    aside = folder / f".{RUN_FILE}.tmp"
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, folder / RUN_FILE)
