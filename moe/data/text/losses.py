"""What a tokenizer cannot write of a text: unknown tokens, and characters that are gone.

- Unknown tokens are counted, every one of them, where the tokenizer has an unknown token that text can yield.
- Lost characters are measured on pieces drawn from all over each unit of work (spread.py): those, white space aside,
  that decoding does not give back, whether they became an unknown token, were dropped, or were removed by a normalizer.
  Compared in NFKD and without case, so that a tokenizer that folds these loses nothing by it.
- A tokenizer that gives HARD and PROBES back, as every byte-level one or one with byte fallback does, has nothing to
  count: it is asked once.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from moe.data.meta import WORTH_A_WARNING
from moe.data.text.encoders import HARD, Encoder, build_encoder
from moe.data.text.plain_ids import encode_plain, unknown_id
from moe.data.text.spread import Spread
from moe.data.text.tokenizer import PROBES, load_tokenizer


@dataclass(frozen=True)
class Lossy:
    """A tokenizer that cannot write everything. `unknown_id`: what stands for the rest; None where it is dropped."""

    unknown_id: int | None


@dataclass
class Losses:
    """Counted over all tokens (EOS aside), measured on a sample of the characters."""

    unknown_tokens: int = 0
    sampled_characters: int = 0
    lost_characters: int = 0


def lossy(tokenizer: Any) -> Lossy | None:
    """None for a tokenizer that gives every text back."""
    texts = [*PROBES, *HARD]
    ids = encode_plain(tokenizer, texts)
    unknown = unknown_id(tokenizer)
    if not any(unknown in row for row in ids):
        unknown = None
    decoded = [decode(tokenizer, row, unknown) for row in ids]
    lost = sum(lost_characters(text, back)[0] for text, back in zip(texts, decoded, strict=True))
    return Lossy(unknown) if lost or unknown is not None else None


def decode(tokenizer: Any, ids: Iterable[int], unknown: int | None) -> str:
    return tokenizer.decode([int(i) for i in ids if i != unknown], skip_special_tokens=False)


def lost_characters(text: str, decoded: str) -> tuple[int, int]:
    """(characters of `text` that `decoded` does not have, characters of `text`), white space aside."""
    had, has = (Counter("".join(unicodedata.normalize("NFKD", t).casefold().split())) for t in (text, decoded))
    return (had - has).total(), had.total()


@lru_cache(maxsize=1)
def _decoder(spec_json: str | None, tokenizer_name: str) -> Any:
    if spec_json is None:
        return load_tokenizer(tokenizer_name)
    import tokenizers

    return tokenizers.Tokenizer.from_str(spec_json)


class Counting:
    """Adds up the losses of one unit of work, or of some texts. seed: which pieces are drawn."""

    def __init__(self, kind: Lossy | None, *, spec_json: str | None, tokenizer_name: str, seed: int) -> None:
        self._kind, self._tokenizer = kind, (spec_json, tokenizer_name)
        self._spread = Spread(seed)
        self._unknown_tokens = 0

    def add(self, texts: pa.LargeStringArray, ids: np.ndarray) -> None:
        """Texts and all of their ids [N]. Nothing to do for most tokenizers."""
        if self._kind is None:
            return
        if self._kind.unknown_id is not None:
            self._unknown_tokens += int(np.count_nonzero(ids == self._kind.unknown_id))
        self._spread.add(texts)

    def result(self, encoder: Encoder) -> Losses:
        """All that was added. The pieces are encoded and decoded here, once."""
        losses = Losses(self._unknown_tokens)
        if self._kind is None:
            return losses
        pieces = self._spread.pieces()
        ids, offsets = encoder.encode(pa.array(pieces, pa.large_string()))
        decoder = _decoder(*self._tokenizer)
        for piece, begin, end in zip(pieces, offsets[:-1], offsets[1:], strict=True):
            lost, there = lost_characters(piece, decode(decoder, ids[begin:end], self._kind.unknown_id))
            losses.lost_characters += lost
            losses.sampled_characters += there
        return losses


def warning_of(losses: Losses, tokens: int, what: str) -> str | None:
    """A warning where more than WORTH_A_WARNING of the `tokens` or of the sampled characters is lost.

    what: the text that they are of.
    """
    unknown, lost = losses.unknown_tokens / max(1, tokens), losses.lost_characters / max(1, losses.sampled_characters)
    if max(unknown, lost) <= WORTH_A_WARNING:
        return None
    return (
        f"warning: of {what} {unknown:.1%} of the tokens are unknown to the tokenizer, "
        f"{lost:.1%} of the characters are lost; take a tokenizer with byte fallback"
    )


def measured(
    kind: Lossy, documents: Iterable[str], *, encoder: str, spec_json: str | None, tokenizer_name: str
) -> tuple[Losses, int]:
    """(losses, tokens) of pieces that are drawn from all over the documents."""
    spread = Spread(0)
    spread.add(pa.array(documents, pa.large_string()))
    built, pieces = build_encoder(encoder, spec_json=spec_json, tokenizer_name=tokenizer_name), spread.pieces()
    ids, _ = built.encode(pa.array(pieces, pa.large_string()))
    counting = Counting(kind, spec_json=spec_json, tokenizer_name=tokenizer_name, seed=0)
    counting.add(pa.array(pieces, pa.large_string()), ids)
    return counting.result(built), len(ids)
