"""Large numbers as people write them on a command line: 10B, 500M, 600000."""

from __future__ import annotations

import re

from moe.common.errors import InputError
from moe.common.units import short
from moe.config.bounds import brief

LETTERS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
MOST_COUNT = 10**15


def read_count(flag: str, text: str) -> int:
    """10B -> 10,000,000,000. Raises InputError where `text`, the value of `flag`, is no number from 1 to MOST_COUNT."""
    pattern = r"(\d{1,15}(?:\.\d{1,12})?)([kmbt]?)"
    found = re.fullmatch(pattern, text.strip().replace("_", ""), re.IGNORECASE | re.ASCII)
    sizes = {letter.lower(): size for letter, size in LETTERS.items()}
    count = round(float(found[1]) * sizes[found[2].lower()]) if found else 0
    if not 1 <= count <= MOST_COUNT:
        most = f"{MOST_COUNT // LETTERS['T']:,}T"
        raise InputError(f"{flag} ({brief(text)}): write a number from 1 to {most}, such as 10B, 500M or 600000")
    return count


def exactly(count: int) -> str:
    """With a letter where that loses nothing: `read_count` gives it back."""
    text = short(count)
    return text if "," not in text and read_count("", text) == count else str(count)


def at_least(count: int) -> str:
    """In letters, to four digits, never less."""
    digits = max(0, len(str(count)) - 4)
    count = -(-count // 10**digits) * 10**digits
    letter, size = max((pair for pair in LETTERS.items() if pair[1] <= count), key=lambda pair: pair[1])
    return f"{count / size:.10g}{letter}"
