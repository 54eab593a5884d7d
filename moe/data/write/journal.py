"""What a merge has written so far, so that one that was killed resumes with the next shard.

`<out>.partial/merging.json` names the units that are merged, by a digest, and of each split the entries of the shards
that were packed from rests, in order. A file appears under its name when it is complete: its size tells that it is
there.
"""

from __future__ import annotations

import json
from typing import Any, TypedDict

from moe.common.typed_json import parse_json
from moe.data.folders import Folder

NAME = "merging.json"


class _Journal(TypedDict):
    units: str
    written: dict[str, list[dict[str, Any]]]


class Journal:
    """Of a merge of the units with this digest. `resumed`: one of the same units was begun before."""

    def __init__(self, folder: Folder, units: str) -> None:
        self._folder, self._units = folder, units
        self._written: dict[str, list[dict[str, Any]]] = {}
        self.resumed = False
        try:
            before = parse_json(folder.read(NAME) or b"", _Journal)
        except ValueError:
            return
        if before["units"] == units:
            self._written, self.resumed = before["written"], True

    def begin(self) -> None:
        """Written before the first file of the merge."""
        self._folder.write(NAME, json.dumps({"units": self._units, "written": self._written}).encode())

    def written(self, split: str) -> list[dict[str, Any]]:
        """The entries of the packed shards, in order."""
        return list(self._written.get(split, []))

    def keep(self, split: str, count: int) -> None:
        """Only the first `count` of them are still there."""
        self._written[split] = self.written(split)[:count]

    def add(self, split: str, info: dict[str, Any]) -> None:
        """A packed shard is in its place."""
        self._written.setdefault(split, []).append(info)
        self.begin()
