"""Text to ids, three ways behind one call: `encode(texts) -> (ids, offsets)`.

- gigatoken and fastokens are 15 to 40 times faster than `tokenizers`; each is held against transformers on real
  documents and on HARD strings before it is used, and dropped with a printed line on one differing id.
- `transformers` always works: the fast backend where there is one, the Python tokenizer otherwise.
- One thread each: parallelism is one process per worker, so that CPU use is what `--workers` says.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from moe.common.errors import InputError
from moe.common.extras import install_command

HARD = (
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|> <|endoftext|>\n<|endoftext|",
    "<s></s><unk><pad>[CLS][SEP][MASK]<|im_start|>user<|im_end|>",
    " ",
    "\n\n\n",
    " \t\r\n\x0b\x0c\x85\u2028\u2029\u00a0\u3000",
    "a" * 3000,
    " " * 500 + "x" + "\n" * 500,
    "don't we'll I'M THEY'RE o’clock 'tis ''s",
    "1234567890 12,345.678 1e-5 ½ ² ٣٤ Ⅻ",
    "é e\u0301 ñ n\u0303 Å A\u030a ﬁ ｆｕｌｌ",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇩🇪 ☃️",
    "مرحبا שלום हिन्दी ไทย 한국어 日本語 中文",
    "\u200b\u200d\ufeff\u202e\x00\x01\x7f",
    "𝕳𝖊𝖑𝖑𝖔 𐍈 \U0010ffff \ud7ff\ue000",
    "http://example.com/a?b=c&d=%20#frag user@example.com C:\\path\\file.txt",
    "for(int i=0;i<10;++i){\n\tx[i]+=1;\n}\n\n\n    # indented",
    "MixedCASEWordsAndsnake_case_words-kebab-case",
    "....!!!???---___***///\\\\\\",
    "ab" * 1000 + "\n" + "0" * 1000 + "!" * 1000,
)

Encoded = tuple[np.ndarray, np.ndarray]  # ids uint32 [N], offsets int64 [documents + 1]


def settle_process() -> None:
    """One thread, and memory given back: before the encoders start their first batch."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    with contextlib.suppress(NotImplementedError):  # the default pool keeps up to 100 MB more after large pages
        pa.set_memory_pool(pa.jemalloc_memory_pool())


class Encoder(Protocol):
    name: str

    def encode(self, texts: pa.LargeStringArray) -> Encoded: ...


class Gigatoken:
    name = "gigatoken"

    def __init__(self, spec_json: str) -> None:
        import gigatoken

        self._tokenizer = gigatoken.Tokenizer.from_json(spec_json)

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        import awkward as ak

        _, offsets, data = texts.buffers()  # Arrow's own memory: no copy, no Python string
        starts = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        chars = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
        content = ak.contents.NumpyArray(chars, parameters={"__array__": "char"})
        layout = ak.contents.ListOffsetArray(ak.index.Index64(starts), content, parameters={"__array__": "string"})
        out: Any = self._tokenizer.encode_batch(ak.Array(layout), parallel=False).layout
        return np.asarray(out.content.data), np.asarray(out.offsets)


class Fastokens:
    name = "fastokens"

    def __init__(self, spec_json: str) -> None:
        import fastokens

        self._tokenizer = fastokens.Tokenizer.from_json_str(spec_json)

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        ids, offsets = self._tokenizer.encode_batch_flat(texts.to_pylist(), False, True)
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64).astype(np.int64)


CUT = re.compile(r"(?<=[a-z]) (?=[a-z])", re.ASCII)
CUT_CHARS = 1 << 18
CUT_PROBE = (
    "as well as one of the most important things in the world, it is not only a matter of fact that by the way of an "
    "example the end of the day and at the same time there is going to be a lot of people who have been in order to do "
    "so on the other hand for the first time in a number of years according to the results of this work in the united "
    "states of america; thank you very much, i would like to know what you think about it as soon as possible"
)


def cut_text(text: str) -> Iterator[str]:
    """Pieces of at least CUT_CHARS characters, each but the first beginning with a space between two words."""
    start = 0
    while len(text) - start > CUT_CHARS and (cut := CUT.search(text, start + CUT_CHARS)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def groups_of(texts: list[str]) -> Iterator[list[str]]:
    """The texts in order, together while they have at most CUT_CHARS characters."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > CUT_CHARS:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


class Transformers:
    """Its memory is 130 bytes a character, so a long text is encoded in pieces: cut before a word, where a tokenizer
    that splits at spaces has a boundary anyhow. One that gives other ids for a probe cut at any such place, as it
    joins words or adds to a text's front, gets its texts uncut.
    """

    name = "transformers"

    def __init__(self, spec_json: str | None, tokenizer_name: str) -> None:
        self._encode: Callable[[list[str]], list[list[int]]]
        if spec_json is not None:
            import tokenizers

            fast = tokenizers.Tokenizer.from_str(spec_json)
            fast.encode_special_tokens = True
            self._encode = lambda texts: [e.ids for e in fast.encode_batch_fast(texts, add_special_tokens=False)]
        else:
            from moe.data.text.plain_ids import encode_plain
            from moe.data.text.tokenizer import load_tokenizer

            slow = load_tokenizer(tokenizer_name)
            self._encode = lambda texts: encode_plain(slow, texts)

        (whole,) = self._encode([CUT_PROBE])
        halves = ([CUT_PROBE[: cut.start()], CUT_PROBE[cut.start() :]] for cut in CUT.finditer(CUT_PROBE))
        self._may_cut = all(left + right == whole for left, right in map(self._encode, halves))

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        pieces = [list(cut_text(text)) if self._may_cut else [text] for text in texts.to_pylist()]
        flat = [piece for document in pieces for piece in document]
        ids = [np.empty(0, np.uint32)]
        for group in groups_of(flat):
            ids += [np.array(row, np.uint32) for row in self._encode(group)]
        ends = np.cumsum([0] + [len(row) for row in ids[1:]])
        offsets = ends[np.cumsum([0] + [len(document) for document in pieces])]
        return np.concatenate(ids), offsets


def build_encoder(name: str, *, spec_json: str | None, tokenizer_name: str) -> Encoder:
    """The encoder called `name`.

    Raises ImportError without its package, another error where it cannot read the tokenizer.
    """
    if name == "transformers":
        return Transformers(spec_json, tokenizer_name)
    if spec_json is None:
        raise ValueError("the tokenizer has no tokenizer.json form")
    return Gigatoken(spec_json) if name == "gigatoken" else Fastokens(spec_json)


def first_difference(encoder: Encoder, texts: list[str], expected: Sequence[Sequence[int] | np.ndarray]) -> str | None:
    """Where `encoder` departs from `expected` ids, in words; None when it never does."""
    ids, offsets = encoder.encode(pa.array(texts, pa.large_string()))
    for i, want in enumerate(expected):
        got, right = ids[offsets[i] : offsets[i + 1]], np.asarray(want, np.uint32)
        if len(got) != len(right) or (got != right).any():
            return f"{json.dumps(texts[i][:60])} gives {got[:8].tolist()}, transformers gives {right[:8].tolist()}"
    return None


def choose_encoder(
    wanted: str,
    *,
    tokenizer: Any,
    tokenizer_name: str,
    spec_json: str | None,
    documents: list[str],
    say: Callable[[str], None],
) -> str:
    """The name of the fastest encoder that gives transformers' ids on HARD and on `documents`.

    `wanted` is `auto` or one encoder's name. An encoder that is named and missing is an InputError; one that is
    named and differs gives way to `transformers`, and `say` gets the reason.
    """
    from moe.data.text.plain_ids import encode_plain

    candidates = ["gigatoken", "fastokens"] if wanted == "auto" else [wanted]
    groups = list(groups_of([*HARD, *documents]))  # some at a time: transformers takes 130 bytes a character
    expected: list[list[np.ndarray]] = []
    for name in candidates:
        if name == "transformers":
            break
        try:
            encoder = build_encoder(name, spec_json=spec_json, tokenizer_name=tokenizer_name)
        except ImportError as error:
            if wanted != "auto":
                raise InputError(f"--encoder {name}: {error}; {install_command('convert')}") from error
            continue
        except Exception as error:  # a tokenizer it does not know: whatever it raises, transformers can still do it
            say(f"{name} cannot read this tokenizer ({str(error)[:200]}); not used")
            continue
        expected = expected or [[np.array(i, np.uint32) for i in encode_plain(tokenizer, group)] for group in groups]
        found = (first_difference(encoder, group, ids) for group, ids in zip(groups, expected, strict=True))
        difference = next((each for each in found if each is not None), None)
        if difference is None:
            return name
        say(f"{name} is not used, it differs from transformers: {difference}")
    if wanted == "auto" and spec_json is not None:
        say(
            f"using transformers' own encoder, about 20 times slower; {install_command('convert')} brings the fast ones"
        )
    return "transformers"
