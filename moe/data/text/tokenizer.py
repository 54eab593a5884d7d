"""Load a tokenizer and say what it is.

- No code from a hub repository is ever run (`trust_remote_code` stays off).
- A tokenizer without EOS is refused: EOS is the only mark between documents.
- The fingerprint covers what decides ids (vocabulary, merges, EOS, probe strings) and nothing else, so it is the same
  for a hub name, a cached snapshot and a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from moe.data.hub_client import endpoint
from moe.errors import InputError

REACH_S, REACH_TRIES = 4.0, 2
PROBES = (
    "Hello world",
    " leading and  double   spaces\n\n\ttabs",
    "It's 3.14159 and 1,000,000; don't",
    "naïve café – “quotes” … 你好，世界 🙂 ﷺ",
    "def f(x):\n    return x**2  # comment\r\n",
    "<|endoftext|><s></s>[INST]",
)


def spare_torch() -> None:
    """Let transformers load tokenizers without torch: 3 s and 130 MB, not 18 s and 690 MB. Call it first of all."""
    if "transformers" in sys.modules:  # too late, and the setting would reach the processes that this one starts
        return
    os.environ.setdefault("USE_TORCH", "0")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would say that no models can be used


def hub_fault(name: str) -> str | None:
    """Why the hub cannot be asked for `name` now; None where it answers, whatever it says.

    Its own client would try for a minute and write a line for each try. What is cached is used without it.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.utils import get_session

    if HF_HUB_OFFLINE or re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is None:
        return None  # the client asks nobody then
    fault = None
    for attempt in range(REACH_TRIES):
        try:
            get_session().head(f"{endpoint()}/{name}/resolve/main/tokenizer_config.json", timeout=REACH_S)
            return None
        except Exception as error:  # of requests or httpx, whichever huggingface_hub uses
            fault = f"{endpoint()} cannot be reached: {type(error).__name__}"
        if attempt + 1 < REACH_TRIES:
            print(f"tokenizer {name}: {fault}; trying again ...", file=sys.stderr, flush=True)
            time.sleep(1)
    return fault


def load_tokenizer(name_or_folder: str) -> Any:
    """A transformers tokenizer from a folder or a hub name.

    Raises InputError when there is none, or when it has no EOS.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # GPT-2's "sequence longer than 1024" is no news to a packer
    fault = None if Path(name_or_folder).is_dir() else hub_fault(name_or_folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_folder, trust_remote_code=False, local_files_only=fault is not None
        )
    except Exception as error:
        if Path(name_or_folder).is_dir():
            files = ", ".join(sorted(p.name for p in Path(name_or_folder).iterdir())) or "nothing"
            mend = f"the folder holds {files}; it needs a tokenizer.json"
        else:
            mend = "give a folder with a tokenizer.json, or the name of a public one where the hub can be reached"
        cause = fault or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"tokenizer '{name_or_folder}' cannot be loaded: {mend} ({cause})") from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"tokenizer '{name_or_folder}' has no EOS token, which marks where documents end; "
            'add "eos_token" to its tokenizer_config.json, or choose another tokenizer'
        )
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


def encode_plain(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids per text as transformers gives them:

    nothing added, special tokens in the text taken as ordinary characters.
    """
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def plain_json(tokenizer: Any) -> str | None:
    """The tokenizer as one tokenizer.json text that never yields a special token; None for a tokenizer without a fast
    backend.

    Special tokens leave `added_tokens`, so a literal `<|endoftext|>` in a text cannot become a document boundary.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["special"]]
    spec["post_processor"] = spec["truncation"] = spec["padding"] = None
    return json.dumps(spec, ensure_ascii=False)


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
