"""Which rows are documents: text columns checked and cleaned, each bad row counted by reason.

Reasons: `null`, `empty`, `blank` (only white space), `invalid_utf8`, `nul` (a tenth or more of it NUL bytes),
`wrong_type` (not a string), `bad_json`, `duplicate_key` (an object with two texts), `bad_csv` (a row with more or
fewer values than names).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from moe.data.text.columns import as_text, key_bytes
from moe.data.text.looks import NUL_SHARE

EXAMPLES = 20  # bad rows listed by name, per reason


@dataclass
class Skipped:
    """Bad rows: how many by reason, and the first few by name."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        names = self.examples.setdefault(reason, [])
        if len(names) < EXAMPLES:
            names.append(name)

    def merge(self, other: Skipped) -> None:
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
        for reason, names in other.examples.items():
            mine = self.examples.setdefault(reason, [])
            mine += names[: EXAMPLES - len(mine)]


@dataclass
class Batch:
    """Rows as read: the text column, the id column where there is one, and the row number of each in its file."""

    texts: pa.Array
    ids: pa.Array | None
    rows: list[int] | range
    weight: int  # progress made, in the unit's own measure
    bad: list[tuple[str, int]] = field(default_factory=list)  # rows the reader itself gave up: reason, row
    separators: list[int] = field(default_factory=list)  # of each line of a .txt that ended a document the next row

    def until(self, row: int) -> Batch:
        """What of it lies up to this row, and the line that ends that."""
        count = bisect_right(self.rows, row)
        return replace(
            self,
            texts=self.texts[:count],
            ids=None if self.ids is None else self.ids[:count],
            rows=self.rows[:count],
            bad=[(reason, number) for reason, number in self.bad if number <= row],
            separators=[following for following in self.separators if following <= row + 1],
        )


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _utf8_mask(texts: pa.Array) -> np.ndarray | None:
    """Which texts are valid UTF-8; None when all are (one fast pass)."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        raw = texts.cast(pa.large_binary()).to_pylist()
        return np.array([value is None or _is_utf8(value) for value in raw])
    return None


def _nul_mask(texts: pa.LargeStringArray) -> np.ndarray | None:
    """Which texts are text, not NUL bytes; None when all are (one fast pass)."""
    offsets, starts = texts.buffers()[1], texts.offset
    bounds = np.frombuffer(offsets, np.int64)[starts : starts + len(texts) + 1]
    chars = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[bounds[0] : bounds[-1]]
    if not len(chars) or chars.min():
        return None
    of = np.searchsorted(bounds, np.flatnonzero(chars == 0) + bounds[0], side="right") - 1
    few = np.bincount(of, minlength=len(texts)) < NUL_SHARE * np.diff(bounds)
    return None if (few | (np.diff(bounds) == 0)).all() else few | (np.diff(bounds) == 0)


def clean(batch: Batch, *, file: str, skipped: Skipped) -> tuple[pa.LargeStringArray, pa.Array | None, np.ndarray]:
    """The documents of a batch, their ids and rows, without the bad rows, which `skipped` gets."""
    ids, rows = batch.ids, np.asarray(batch.rows)

    def name(i: int) -> str:
        key = key_bytes(ids[i : i + 1])[0] if ids is not None else None
        return key.decode("utf-8", "replace") if key else f"{file} row {int(rows[i])}"

    def keep(texts: pa.Array, mask: np.ndarray, reasons: dict[str, np.ndarray]) -> pa.Array:
        nonlocal ids, rows
        for reason, which in reasons.items():
            for i in np.flatnonzero(which).tolist():
                skipped.add(reason, name(i))
        arrow_mask = pa.array(mask)
        ids, rows = (ids.filter(arrow_mask) if ids is not None else None), rows[mask]
        return texts.filter(arrow_mask)

    for reason, row in batch.bad:
        skipped.add(reason, f"{file} row {row}")
    texts = batch.texts
    if texts.null_count:
        mask = np.asarray(texts.is_valid())
        texts = keep(texts, mask, {"null": ~mask})
    texts = as_text(texts)
    mask_utf8 = _utf8_mask(texts)
    if mask_utf8 is not None:
        texts = keep(texts, mask_utf8, {"invalid_utf8": ~mask_utf8})
    mask_nul = _nul_mask(texts)
    if mask_nul is not None:
        texts = keep(texts, mask_nul, {"nul": ~mask_nul})
    empty, blank = np.asarray(pc.equal(pc.binary_length(texts), 0)), np.asarray(pc.utf8_is_space(texts))
    if empty.any() or blank.any():
        texts = keep(texts, ~(empty | blank), {"empty": empty, "blank": blank & ~empty})
    return texts, ids, rows


def have_ids(ids: pa.Array | None, count: int) -> np.ndarray:
    """Which of `count` documents have an id: bool [count]. An empty one is none."""
    return np.zeros(count, bool) if ids is None else np.array([bool(key) for key in key_bytes(ids)], bool)


def document_hashes(texts: pa.LargeStringArray, ids: pa.Array | None, seed: int) -> np.ndarray:
    """xxh64 of each document's id (of its text where it has none), seeded: uint64 [documents]."""
    digest = xxhash.xxh64_intdigest
    keys = texts.to_pylist() if ids is None else [key or texts[i].as_py() for i, key in enumerate(key_bytes(ids))]
    return np.fromiter((digest(key, seed) for key in keys), np.uint64, len(keys))
