"""Load a tokenizer and say what it is.

- No code from a hub repository is ever run (`trust_remote_code` stays off).
- A tokenizer without EOS is refused: EOS is the only mark between documents. Text never yields EOS, or any other
  special token (plain_ids.py).
- A folder may hold a tokenizer.json alone; its EOS is the one of EOS_NAMES that it has.
- The fingerprint covers what decides ids (vocabulary, merges, EOS, probe strings) and nothing else, so it is the same
  for a hub name, a cached snapshot and a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from moe.common.errors import InputError
from moe.common.paths import local_path
from moe.data.text.plain_ids import encode_plain, plain_json, written_specials
from moe.data.text.tokenizer_hub import cached_folder, fetch_tokenizer, hub_error

PROBES = (
    "Hello world",
    " leading and  double   spaces\n\n\ttabs",
    "It's 3.14159 and 1,000,000; don't",
    "naïve café – “quotes” … 你好，世界 🙂 ﷺ",
    "def f(x):\n    return x**2  # comment\r\n",
    "<|endoftext|><s></s>[INST]",
)
EOS_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[EOS]", "<|eos|>")


def save_files(tokenizer: Any, folder: Path) -> None:
    """As transformers' `save_pretrained`. Raises OSError where the disk refuses, which tokenizers hides."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)$", str(error))
        if isinstance(error, OSError) or found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(folder)) from None


def spare_torch() -> None:
    """Let transformers load tokenizers without torch: 3 s and 130 MB, not 18 s and 690 MB. Call it first of all."""
    if "transformers" in sys.modules:  # too late, and the setting would reach the processes that this one starts
        return
    os.environ.setdefault("USE_TORCH", "0")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would say that no models can be used


def is_hub_name(name: str) -> bool:
    """Whether `name` may be one on the hub, `gpt2` or `openai-community/gpt2`; anything else is a path, and so is what
    begins with a folder that is here.
    """
    owner, _, rest = name.partition("/")
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None and not (rest and Path(owner).is_dir())


def load_tokenizer(name_or_folder: str) -> Any:
    """A transformers tokenizer from a folder or a hub name.

    Raises InputError when there is none, or when it has no EOS.
    """
    folder = Path(name_or_folder)
    if not folder.is_dir() and not is_hub_name(name_or_folder):
        found = "is a file" if folder.exists() else "is not there"
        raise InputError(
            f"tokenizer '{name_or_folder}' cannot be loaded: that folder {found}; give one with a tokenizer.json, or "
            "the name of one on the hub, such as openai-community/gpt2"
        )
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from transformers import AutoTokenizer
    from transformers.utils import logging

    if name_or_folder.startswith("~") or ":/" in name_or_folder:
        name_or_folder = str(local_path(name_or_folder, "tokenizer"))

    logging.set_verbosity_error()  # GPT-2's "sequence longer than 1024" is no news to a packer
    reason = None
    try:
        if not folder.is_dir() and not HF_HUB_OFFLINE and (reason := hub_error(name_or_folder)) is None:
            fetch_tokenizer(name_or_folder)
        # by its folder: of a name transformers may ask the hub, whatever its arguments say
        place = name_or_folder if folder.is_dir() else str(cached_folder(name_or_folder) or name_or_folder)
        tokenizer = _lone_tokenizer(place) or AutoTokenizer.from_pretrained(
            place, trust_remote_code=False, local_files_only=True
        )
    except InputError as error:
        if folder.is_dir():
            raise
        raise InputError(f"tokenizer '{name_or_folder}' cannot be loaded: {error}") from None
    except Exception as error:
        if Path(name_or_folder).is_dir():
            files = ", ".join(sorted(p.name for p in Path(name_or_folder).iterdir())) or "nothing"
            fix = f"the folder holds {files}; it needs a tokenizer.json"
            if (Path(name_or_folder) / "tokenizer.json").is_file():
                fix = f"the files in it ({files}) make no tokenizer; save it again, or fetch it again"
        else:
            fix = "give a folder with a tokenizer.json, or the name of a public one where the hub can be reached"
        cause = reason or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"tokenizer '{name_or_folder}' cannot be loaded: {fix} ({cause})") from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"tokenizer '{name_or_folder}' has no EOS token, which marks where documents end; "
            'add "eos_token" to its tokenizer_config.json, or choose another tokenizer'
        )
    try:
        written = written_specials(tokenizer)
    except Exception as error:  # of tokenizers, which knows no other: a vocabulary of words without an unknown one
        raise InputError(
            f"tokenizer '{name_or_folder}' cannot encode text: {error}; choose another tokenizer"
        ) from None
    if written:
        raise InputError(
            f"tokenizer '{name_or_folder}' turns {' and '.join(written[:3])} in a text into a special token, "
            "so that a text could end a document; choose another tokenizer"
        )
    return tokenizer


def _lone_tokenizer(folder: str) -> Any:
    """The tokenizer of a folder whose tokenizer.json has no other file to say what it is; None for any other name.

    Raises InputError where it is not clear which token is EOS.
    """
    from transformers import PreTrainedTokenizerFast

    place = Path(folder)
    if not (place / "tokenizer.json").is_file() or (place / "config.json").is_file():
        return None
    settings = place / "tokenizer_config.json"
    if settings.is_file():
        known = json.loads(settings.read_text(encoding="utf-8"))
        return None if known.get("tokenizer_class") else PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(place / "tokenizer.json"))
    there = [token for token in EOS_NAMES if token in tokenizer.get_vocab()]
    if len(there) != 1:
        which = f"it has {', '.join(there)}" if there else f"it has none of {', '.join(EOS_NAMES)}"
        raise InputError(
            f"tokenizer '{folder}': a tokenizer.json alone does not say which token is EOS, and {which}; add a "
            'tokenizer_config.json such as {"eos_token": "</s>"} beside it'
        )
    tokenizer.add_special_tokens({"eos_token": there[0]})
    return tokenizer


def vocab_size(tokenizer: Any) -> int:
    """One more than the largest id, added tokens included: the rows an embedding needs."""
    return max(max(tokenizer.get_vocab().values()), tokenizer.eos_token_id) + 1


def token_bytes(tokenizer: Any) -> list[int] | None:
    """Bytes of text that each id stands for, by id; 0 for special tokens, which stand for none.

    Summed over the tokens of a text they give its length in UTF-8, as decoding would, but exact where a token is a part
    of a character. Known for byte-level BPE and for sentencepiece's marks; None for any other tokenizer.
    """
    decoder = json.dumps(json.loads(plain_json(tokenizer) or "{}").get("decoder"), ensure_ascii=False)
    byte_level, marked = '"ByteLevel"' in decoder, "\u2581" in decoder
    if not (byte_level or marked):
        return None
    sizes = [0] * vocab_size(tokenizer)
    added, special = tokenizer.get_added_vocab(), set(tokenizer.all_special_ids)
    for token, number in tokenizer.get_vocab().items():
        if number in special:
            continue
        if byte_level and token not in added:
            sizes[number] = len(token)  # one character of the alphabet for each byte
        elif re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            sizes[number] = 1
        else:
            sizes[number] = len(token.replace("\u2581", " ").encode())
    return sizes


def token_dtype(size: int) -> str:
    """The dtype on disk for a vocabulary of `size` ids."""
    return "uint16" if size <= 1 << 16 else "uint32"


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 (hex) of sorted vocabulary, merges, EOS and the ids of PROBES."""
    spec = json.loads(plain_json(tokenizer) or "{}")
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec.get("model", {}).get("merges", [])]
    content = {
        "vocab": sorted(tokenizer.get_vocab().items()),
        "merges": merges,
        "eos": [tokenizer.eos_token, tokenizer.eos_token_id],
        "probes": encode_plain(tokenizer, list(PROBES)),
    }
    return hashlib.sha256(json.dumps(content, ensure_ascii=True, sort_keys=True).encode()).hexdigest()
