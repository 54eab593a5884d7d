"""Lines for a person, whatever bytes a name in them holds."""

from __future__ import annotations

from moe.data.text.files import printable


def say(text: str) -> None:
    print("\n".join(map(printable, text.split("\n"))), flush=True)
