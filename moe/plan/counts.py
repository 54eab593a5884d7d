"""Large numbers as people write them on a command line: 10B, 500M, 600000."""

from __future__ import annotations

import re

from moe.common.errors import InputError
from moe.common.units import short
from moe.config.bounds import brief

LETTERS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
MOST_COUNT = 10**15


def read_count(flag: str, text: str) -> int:
    """10B -> 10,000,000,000. Raises InputError where `text`, the value of `flag`, is no number from 1 to MOST_COUNT."""
    pattern = r"(\d{1,15}(?:\.\d{1,12})?)([kmbt]?)"
    found = re.fullmatch(pattern, text.strip().replace("_", ""), re.IGNORECASE | re.ASCII)
    count = round(float(found[1]) * LETTERS[found[2].lower()]) if found else 0
    if not 1 <= count <= MOST_COUNT:
        most = f"{MOST_COUNT // LETTERS['t']:,}T"
        raise InputError(f"{flag} ({brief(text)}): write a number from 1 to {most}, such as 10B, 500M or 600000")
    return count


def exactly(count: int) -> str:
    """With a letter where that loses nothing: `read_count` gives it back."""
    text = short(count)
    return text if "," not in text and read_count("", text) == count else str(count)
