"""A keyed permutation of 0 .. n-1 for any n, worked out for single elements: no array of n is ever made.

- A Feistel network over the smallest power of two that holds n, walked until the value lies below n (cycle walking,
  Black and Rogaway 2002): a bijection for every n and every key, and fewer than two walks an element on average,
  because the two halves may differ by a bit. Ways without walking (swap-or-not) take many times the rounds.
- Elements, sizes and keys are arrays: one call permutes elements of many small sets, each with its size and key.
- The arithmetic is fixed here, on 64 bits: numpy's generators may change their streams from version to version.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 16  # with 8, sets of four to six come in some orders more often than in others
GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
_A, _B, _32 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(32)
_ONE = np.uint64(1)


def key_of(*parts: int) -> int:
    """64 bits that depend on every part and on their order (splitmix64 of the chain)."""
    state = 0
    for part in parts:
        state = (state + part + GOLDEN) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


def scattered(key: int, numbers: np.ndarray) -> np.ndarray:
    """uint64 [n] that look random, a function of the key and each number: keys of parts, or what to sort by."""
    mixed = numbers.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _A
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _B
    return mixed ^ (mixed >> np.uint64(31))


def permuted(elements: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where each element goes: int64 [n], below its size. Arrays are [n], 0 <= elements < sizes, keys are uint64."""
    sizes = sizes.astype(np.uint64)
    bits = np.frexp((sizes - _ONE).astype(np.float64))[1].astype(np.uint64)  # 2**bits >= size
    moved = _walk(elements.astype(np.uint64), bits, keys)
    while len(outside := np.flatnonzero(moved >= sizes)):
        moved[outside] = _walk(moved[outside], bits[outside], keys[outside])
    return moved.astype(np.int64)


def _walk(values: np.ndarray, bits: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """One pass through the network: a permutation of 0 .. 2**bits - 1."""
    low_bits = bits >> _ONE
    low_mask = (_ONE << low_bits) - _ONE
    high_mask = (_ONE << (bits - low_bits)) - _ONE
    low, high = values & low_mask, values >> low_bits
    for number in range(ROUNDS):
        round_keys = keys + np.uint64((number + 1) * GOLDEN & MASK)
        if number % 2:
            high = high ^ (_mixed(low, round_keys) & high_mask)
        else:
            low = low ^ (_mixed(high, round_keys) & low_mask)
    return (high << low_bits) | low


def _mixed(half: np.ndarray, keys: np.ndarray) -> np.ndarray:
    mixed = (half ^ keys) * _A
    mixed = (mixed ^ (mixed >> _32)) * _B
    return mixed ^ (mixed >> _32)
