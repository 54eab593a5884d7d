"""A sample of a text of unknown length, drawn from all over it while it goes by, in bounded memory and time.

- The text is thought of in pieces of PIECE_BYTES (a document's last one is shorter). Each has a number drawn from the
  seed and its place; those with the smallest are kept, SAMPLE_BYTES of them. So every byte has the same chance, the
  front as much as the end, and the same text gives the same sample.
- Pieces meet at white space where there is some: half a word is not what a tokenizer meets.
"""

from __future__ import annotations

import heapq
import re

import numpy as np
import pyarrow as pa

from moe.data.text.order import splitmix64

PIECE_BYTES, SAMPLE_BYTES = 1 << 10, 64 << 10
LONGEST_WORD = 128
SPACE = re.compile(rb"[ \t\r\n]")


class Spread:
    """Give it the texts with `add`, in order; `pieces` are the sample so far."""

    def __init__(self, seed: int) -> None:
        self._seed = int(splitmix64(np.array([seed % 2**64], np.uint64))[0])
        self._seen = 0  # pieces
        self._kept: list[tuple[int, int, str]] = []  # a heap: the largest number first, as a negative one; place, text
        self._bytes = 0

    def add(self, texts: pa.LargeStringArray) -> None:
        if not len(texts):
            return
        bounds = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
        counts = -(-np.diff(bounds) // PIECE_BYTES)  # pieces of each text
        ends = np.cumsum(counts)
        places = np.arange(self._seen, self._seen + int(ends[-1]), dtype=np.uint64)
        self._seen += int(ends[-1])
        drawn = splitmix64(places + np.uint64(self._seed))
        chosen = np.flatnonzero(drawn < np.uint64(self._limit()))
        for i in chosen[np.argsort(drawn[chosen], kind="stable")].tolist():
            number = int(drawn[i])
            if number >= self._limit():
                return
            text = int(np.searchsorted(ends, i, side="right"))
            piece = i - int(ends[text] - counts[text])
            self._keep(number, i, _piece(texts.buffers()[2], int(bounds[text]), int(bounds[text + 1]), piece))

    def _limit(self) -> int:
        """A number from which on nothing is kept."""
        return -self._kept[0][0] if self._bytes >= SAMPLE_BYTES else 2**64 - 1

    def _keep(self, number: int, place: int, text: str) -> None:
        heapq.heappush(self._kept, (-number, place, text))
        self._bytes += len(text.encode())
        while self._bytes - len(self._kept[0][2].encode()) >= SAMPLE_BYTES:
            self._bytes -= len(heapq.heappop(self._kept)[2].encode())

    def pieces(self) -> list[str]:
        return [text for _, _, text in sorted(self._kept, reverse=True)]


def _cut(content: pa.Buffer, at: int, end: int) -> int:
    """Where a piece ends that would end at `at`: at the next white space, or behind a complete character."""
    near = content[at : min(end, at + LONGEST_WORD)].to_pybytes()
    if found := SPACE.search(near):
        return at + found.start()
    return at + next((i for i, byte in enumerate(near) if byte & 0xC0 != 0x80), len(near))


def _piece(content: pa.Buffer, begin: int, end: int, number: int) -> str:
    first, last = begin + number * PIECE_BYTES, begin + (number + 1) * PIECE_BYTES
    first = _cut(content, first, end) if number else begin
    return content[first : _cut(content, last, end) if last < end else end].to_pybytes().decode()
