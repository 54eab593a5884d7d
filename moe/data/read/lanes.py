"""Text to an endless, shuffled row of token blocks, in L lanes that do not depend on ranks or workers.

- The order: in each epoch the pieces of text (units of the conversion, cut finer where there are few) are shuffled by
  (seed, epoch) and dealt out, each to the lane that has got the least text so far. A lane reads its pieces one after
  the other, epoch after epoch, and carries what is left of one into the next. Every document comes once an epoch.
- Documents are shuffled in windows of WINDOW_TOKENS by (seed + epoch, unit), as the packer of the conversion does; the
  lanes mix what is further apart. Global sequence g is the next block of lane g mod L.
- A lane's position is where its window began, how many tokens were carried into it, and how many blocks were taken
  since. The carried tokens went out with the first of these blocks, so their number is enough: to resume, one window is
  encoded again and nothing else.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa

from moe.common.errors import InputError
from moe.common.units import note, printable
from moe.data.read.touched import refuse_changed
from moe.data.text.encoders import Encoder, build_encoder
from moe.data.text.errors import BadFileError
from moe.data.text.files import Unit
from moe.data.text.order import shuffled_order
from moe.data.text.reading import read_batches
from moe.data.text.rows import Batch, Skipped, clean, document_hashes

WINDOW_TOKENS = 1 << 19
PIECES_PER_LANE = 4  # at least, where the files can be cut so fine
LEAST_PIECE = 64 << 10  # bytes of text
Position = tuple[int, int, int, int]  # the lane's piece, documents before the window, tokens carried, blocks taken
START: Position = (0, 0, 0, 0)


@dataclass(frozen=True)
class Piece:
    """A unit, or every `parts`-th document of it (from document `part` on) where its file cannot be cut."""

    unit: Unit
    part: int = 0
    parts: int = 1

    @property
    def weight(self) -> int:
        return max(1, self.unit.weight // self.parts)


@dataclass(frozen=True)
class TextJob:
    """All that decides the blocks and their order, and the encoder, which does not."""

    pieces: tuple[Piece, ...]
    lanes: int
    seq_len: int
    dtype: str
    eos_id: int
    seed: int
    val_seed: int
    val_threshold: int  # a document with a hash below it goes to val
    text_column: str
    id_column: str | None  # names documents; None: their text does
    separator: str | None  # the line that ends a document of a .txt
    encoder: str
    tokenizer: str
    spec_json: str | None
    skip_bad_files: bool = False  # a file that breaks ends there, in each epoch at the same document


def cut_pieces(units: Sequence[Unit], lanes: int) -> tuple[Piece, ...]:
    """The units, cut so that every lane has some: the same pieces for the same text and lanes."""
    target = max(LEAST_PIECE, sum(unit.weight for unit in units) // (PIECES_PER_LANE * lanes))
    found: list[Unit] = []
    for unit in units:
        span = unit.end - unit.begin
        count = min(span, -(-unit.weight // target)) if unit.file.kind in ("parquet", "jsonl") else 1
        cuts = [unit.begin + span * i // count for i in range(count + 1)]
        found += [replace(unit, begin=a, end=b, weight=unit.weight // count) for a, b in itertools.pairwise(cuts)]
    parts = -(-lanes // len(found))  # each lane reads all of the file then, and encodes its share
    return tuple(Piece(unit, part, parts) for unit in found for part in range(parts))


def lane_pieces(job: TextJob, lane: int) -> Iterator[tuple[int, Piece]]:
    """(epoch, piece) of one lane, without end."""
    loads = [(0, number) for number in range(job.lanes)]
    for epoch in itertools.count():
        for i in shuffled_order(0, len(job.pieces), seed=job.seed, unit=epoch).tolist():
            load, number = loads[0]
            heapq.heapreplace(loads, (load + job.pieces[i].weight, number))
            if number == lane:
                yield epoch, job.pieces[i]


def documents(job: TextJob, piece: Piece, *, split: str) -> Iterator[pa.LargeStringArray]:
    """The piece's documents of `train` or `val`, in order, some at a time. Raises BadFileError."""
    number = 0
    for batch in _batches(job, piece):
        texts, ids, _ = clean(batch, file=piece.unit.file.name, skipped=Skipped())
        if not len(texts):
            continue
        in_val = document_hashes(texts, ids, job.val_seed) < np.uint64(job.val_threshold)
        mine = (number + np.arange(len(texts))) % piece.parts == piece.part
        number += len(texts)
        yield texts.filter(pa.array(mine & (in_val if split == "val" else ~in_val)))


def _batches(job: TextJob, piece: Piece) -> Iterator[Batch]:
    """Raises InputError where the file is not the one that the run began with."""
    refuse_changed(piece.unit.file)
    try:
        yield from read_batches(piece.unit, job.text_column, id_column=job.id_column, separator=job.separator)
    except BadFileError as error:
        refuse_changed(piece.unit.file)  # that is then the cause
        if not job.skip_bad_files:
            raise
        note(f"train_data.text: the rest of a file is skipped: {printable(str(error))}")
    refuse_changed(piece.unit.file)


@lru_cache(maxsize=1)
def _encoder(name: str, spec_json: str | None, tokenizer: str) -> Encoder:
    return build_encoder(name, spec_json=spec_json, tokenizer_name=tokenizer)


def encode(job: TextJob, texts: pa.LargeStringArray) -> list[np.ndarray]:
    """Each document's ids, EOS at the end of each."""
    if not len(texts):
        return []
    ids, offsets = _encoder(job.encoder, job.spec_json, job.tokenizer).encode(texts)
    ends = np.insert(ids.astype(job.dtype), offsets[1:], job.eos_id)
    return np.split(ends, (offsets[1:] + np.arange(1, len(offsets)))[:-1])


def windows(
    job: TextJob, piece: Piece, epoch: int, *, skip: int, first_tokens: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(documents before, tokens) of the piece's windows, from the one that begins after `skip` documents.

    first_tokens: the size at which the piece's first window ends.
    """
    before, window, size = skip, list[np.ndarray](), 0

    def shuffled() -> np.ndarray:
        order = shuffled_order(before, len(window), seed=job.seed + epoch, unit=piece.unit.key)
        return np.concatenate([window[i] for i in order.tolist()])

    for texts in documents(job, piece, split="train"):
        dropped = min(skip, len(texts))
        skip -= dropped
        for ids in encode(job, texts[dropped:]):
            window.append(ids)
            size += len(ids)
            if size >= (WINDOW_TOKENS if before else first_tokens):
                yield before, shuffled()
                before, window, size = before + len(window), [], 0
    if window:
        yield before, shuffled()


def lane_rows(job: TextJob, lane: int, position: Position) -> Iterator[tuple[np.ndarray, Position]]:
    """(block [S], the position behind it) of one lane from `position` on, without end.

    Raises BadFileError, and InputError where no piece holds a document to train on.
    """
    start, skip, carried, taken = position
    carry = np.zeros(carried, job.dtype)
    empty = 0
    for number, (epoch, piece) in enumerate(lane_pieces(job, lane)):
        if number < start:
            continue
        # lanes end their first windows one after the other, or all would have to encode the next at the same time
        first = WINDOW_TOKENS * (lane + 1) // job.lanes if number == 0 else WINDOW_TOKENS
        empty += 1
        for before, tokens in windows(job, piece, epoch, skip=skip, first_tokens=first):
            empty = 0
            window = (number, before, len(carry))
            stream = np.concatenate([carry, tokens])
            blocks = len(stream) // job.seq_len
            for i in range(taken, blocks):
                yield stream[i * job.seq_len : (i + 1) * job.seq_len], (*window, i + 1)
            carry, taken = stream[blocks * job.seq_len :].copy(), 0
        skip = 0
        if empty > len(job.pieces):
            raise InputError("there is no document to train on; lower val_fraction, or give more text")


def validation_rows(job: TextJob, units: Sequence[Unit], limit: int | None) -> np.ndarray:
    """Blocks [n, S] of the documents that are never trained on, in the order of the files, at most `limit`."""
    parts: list[np.ndarray] = []
    needed = None if limit is None else limit * job.seq_len
    for unit in units:
        for texts in documents(job, Piece(unit), split="val"):
            parts += encode(job, texts)
        if needed is not None and sum(map(len, parts)) >= needed:
            break
    tokens = np.concatenate(parts)[:needed] if parts else np.empty(0, job.dtype)
    return tokens[: len(tokens) // job.seq_len * job.seq_len].reshape(-1, job.seq_len)
