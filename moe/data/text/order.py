"""The order in which documents go out, the same in conversion and in training on text.

The shuffle sorts by splitmix64 of (seed, unit, row): no library's random stream, so the order never changes.
"""

from __future__ import annotations

import numpy as np

MASK = (1 << 64) - 1


def splitmix64(values: np.ndarray) -> np.ndarray:
    """A 64-bit mix of each uint64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def shuffled_order(first_document: int, count: int, *, seed: int, unit: int) -> np.ndarray:
    """The order of `count` documents of a unit, the first of which is its `first_document`-th:

    a permutation of range(count). unit: its key, of which the lower 64 bits count: from the 1,048,577th file on it is
    longer, and two units of one order do no harm.
    """
    rows = np.arange(first_document, first_document + count, dtype=np.uint64)
    key = splitmix64(splitmix64(np.array([seed], np.uint64)) ^ np.uint64(unit & MASK))
    return np.argsort(splitmix64(rows ^ splitmix64(key)), kind="stable")
