"""Text to ids in which no special token stands, so that a text cannot end a document.

- One list (`special_tokens`) leaves both the added tokens and the vocabulary that text meets.
- Where a tokenizer would write them all the same, they get a name in its vocabulary that text does not hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

UNUSUAL = "\u2603 \u4f60\u597d \u0e44\u0e17\u0e22 \U0001d573 \U0010fffd \x01"
HIDDEN = "\U0010fffe{}\U0010ffff"  # a special token's name in the vocabulary, where text must not find it


def _spec(tokenizer: Any) -> dict[str, Any]:
    """Everything that a fast tokenizer is; large."""
    return json.loads(tokenizer.backend_tokenizer.to_str())


def _is_fast(tokenizer: Any) -> bool:
    return getattr(tokenizer, "backend_tokenizer", None) is not None


@lru_cache(maxsize=2)
def unknown_id(tokenizer: Any) -> int | None:
    """The id that stands for what the tokenizer cannot write; None where it has none."""
    model = _spec(tokenizer)["model"] if _is_fast(tokenizer) else {}
    if "unk_id" in model:  # Unigram
        return model["unk_id"]
    return model["vocab"].get(model.get("unk_token")) if model else tokenizer.unk_token_id


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that are no text, EOS among them; not the unknown token, which stands for text."""
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = {name: tokenizer.convert_tokens_to_ids(name) for name in names | set(tokenizer.all_special_tokens)}
    unknown = unknown_id(tokenizer)
    return {n: i for n, i in found.items() if i is not None and (i != unknown or i == tokenizer.eos_token_id)}


def _writes(encode: Callable[[list[str]], list[list[int]]], specials: dict[str, int]) -> list[str]:
    """Those special tokens whose letters in a text become a special token."""
    wide = {ord(c): ord(c) + 0xFEE0 for c in map(chr, range(0x21, 0x7F))}  # what NFKC makes the same letters of
    numbers = set(specials.values())
    written = []
    for name in specials:
        texts = [name, f"a {name} b", f"a{name}b", f"{name}\n", name.translate(wide)]
        if any(numbers & set(row) for row in encode(texts)):
            written.append(name)
    return written


def written_specials(tokenizer: Any) -> list[str]:
    """What in a text becomes a special token all the same, so that a text could end a document."""
    written = [repr(name) for name in _writes(lambda texts: encode_plain(tokenizer, texts), special_tokens(tokenizer))]
    if any(tokenizer.eos_token_id in row for row in encode_plain(tokenizer, [UNUSUAL])):
        written.append("characters that it does not know")
    return written


def _hide(model: dict[str, Any], names: set[str]) -> None:
    """Give special tokens in a model's vocabulary a name that text does not hold; their ids stay."""
    vocab, names = model["vocab"], names - {model.get("unk_token")}
    if isinstance(vocab, list):  # Unigram: pieces with their scores
        model["vocab"] = [[HIDDEN.format(piece) if piece in names else piece, score] for piece, score in vocab]
        return
    model["vocab"] = {HIDDEN.format(piece) if piece in names else piece: i for piece, i in vocab.items()}
    if "merges" in model:
        pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not names & {*pair, "".join(pair)}]


@lru_cache(maxsize=2)
def _hiding(tokenizer: Any) -> Any:
    """The tokenizer with its special tokens hidden; None for one that does not write them anyway, as nearly all."""
    import tokenizers

    specials = special_tokens(tokenizer)
    if not _is_fast(tokenizer) or not _writes(lambda texts: _split(tokenizer, texts), specials):
        return None
    spec = _plain_spec(tokenizer)
    _hide(spec["model"], set(specials))
    return tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))


def _split(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def encode_plain(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids per text as transformers gives them:

    nothing added, special tokens in the text taken as ordinary characters.
    """
    if not texts:
        return []
    hiding = _hiding(tokenizer)
    if hiding is not None:
        return [row.ids for row in hiding.encode_batch(texts, add_special_tokens=False)]
    return _split(tokenizer, texts)


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Ids of a text that a model is to continue, as it would stand in training; EOS, a document's start, for none."""
    return encode_plain(tokenizer, [prompt])[0] or [tokenizer.eos_token_id]


def decode_new(tokenizer: Any, prompt: list[int], new: list[int]) -> str:
    """The text that `new` ids add behind `prompt`. By themselves they would lose the space before their first word,
    where a tokenizer takes that for the front of a text.
    """
    before, both = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (prompt, prompt + new))
    if both.startswith(before):
        return both[len(before) :]
    return tokenizer.decode(new, clean_up_tokenization_spaces=False)


def _plain_spec(tokenizer: Any) -> dict[str, Any]:
    spec, specials = _spec(tokenizer), special_tokens(tokenizer)
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["special"] and t["content"] not in specials]
    spec["post_processor"] = spec["truncation"] = spec["padding"] = None
    return spec


def plain_json(tokenizer: Any) -> str | None:
    """The tokenizer as one tokenizer.json text that never yields a special token; None for a tokenizer without a fast
    backend.

    Special tokens leave `added_tokens`, and the vocabulary where text would find them, so a literal `<|endoftext|>`
    in a text cannot become a document boundary.
    """
    if not _is_fast(tokenizer):
        return None
    hiding = _hiding(tokenizer)
    return json.dumps(_plain_spec(tokenizer), ensure_ascii=False) if hiding is None else hiding.to_str()
