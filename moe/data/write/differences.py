"""What a conversion began with and what it is asked for now: how both are written down, and what differs.

Content is compared: no path, time or name of a file, nor how the dataset was typed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from moe.data.text.files import SourceFile
from moe.data.write.streamed_json import row

FORMAT = 2  # of plan.json and conversion.json; in 1 files were known by their times
NOT_COMPARED = ("asked", "commit")  # keys of an identity that are reported only


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    keys = [key for key in new if key not in NOT_COMPARED and old.get(key) != new[key]]
    return [f"  {key}: {old.get(key)} then, {new[key]} now" for key in keys]


def file_differences(old: list[list[str]], new: list[list[str]]) -> list[str]:
    """Files with another version, as then and now; the first few. Their order counts, their names do not."""
    if [version for _, version in old] == [version for _, version in new]:
        return []
    before, now = ({name: version for name, version in files} for files in (old, new))
    changed = [name for name in sorted({**before, **now}) if before.get(name) != now.get(name)]
    lines = [f"  {name}: {how(before.get(name), now.get(name))}" for name in changed[:5]]
    return (lines or ["  the files come in another order"]) + [f"  and {len(changed) - 5} more files"] * (
        len(changed) > 5
    )


def how(before: str | None, now: str | None) -> str:
    if before is None or now is None:
        return "was not there then" if before is None else "is not there now"
    return f"its content changed (version {before[:12]} then, {now[:12]} now)"


def asked_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What was typed otherwise: it may be why files differ."""
    before, now = old.get("asked") or {}, new.get("asked") or {}
    return [f"  ({key}: {before.get(key)} then, {now.get(key)} now)" for key in now if before.get(key) != now.get(key)]


def versions(files: Sequence[SourceFile]) -> list[list[str]]:
    return [[file.name, file.version] for file in files]


def file_rows(files: Sequence[SourceFile]) -> dict[str, Iterable[str]]:
    """`files` and `stats` of a Plan, as streamed_json takes them."""
    return {
        "files": (row([file.name, file.version]) for file in files),
        "stats": (row(file.stat) for file in files),
    }
