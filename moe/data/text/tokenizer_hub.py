"""A tokenizer's files from the hub, through the one client (moe/data/hub_client.py), into Hugging Face's own cache.

- transformers takes a file that it could not fetch for one that is not there, and continues with another tokenizer. So
  the files are fetched here, all of one commit, and it is given the cache alone.
- What the cache has of the newest commit is not fetched again; where the hub does not answer in CACHED_PATIENCE_S,
  what it has of an older one is used, and a line says so.
- Each file is held against the sha256 that the hub sends with it (LFS files).
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path

from moe.common.durable import aside_of
from moe.common.errors import InputError
from moe.common.units import note
from moe.data.hub_client import Answer, endpoint, nobody_there, report_line, request, url_of

FIRST = "tokenizer_config.json"
FILES = (
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)
CACHED_PATIENCE_S = 20.0
REACH_S, REACH_TRIES = 4.0, 2
ROUNDS = 3  # a push between two requests mixes commits


def hub_error(name: str) -> str | None:
    """Why nobody is there to be asked for `name` now: no address, no way, nobody listening. None where there is.

    That is not waited for: what is cached is used then.
    """
    from huggingface_hub.utils import get_session

    reason = None
    for attempt in range(REACH_TRIES):
        try:
            get_session().head(f"{endpoint()}/{name}/resolve/main/tokenizer_config.json", timeout=REACH_S)
            return None
        except Exception as error:  # of requests or httpx, whichever huggingface_hub uses
            if not nobody_there(error):
                return None  # somebody is there and drops or stalls: that passes
            reason = f"{endpoint()} cannot be reached: {type(error).__name__}"
        if attempt + 1 < REACH_TRIES:
            note(f"tokenizer {name}: {reason}; trying again ...")
            time.sleep(1)
    return reason


class _Moved(Exception):
    """The branch moved while its files were fetched."""


def cache_of(name: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def cached_folder(name: str) -> Path | None:
    """Where the cache holds a tokenizer, as its branch main was when it was last fetched; None where it does not."""
    ref = cache_of(name) / "refs" / "main"
    commit = ref.read_text().strip() if ref.is_file() else ""
    folder = cache_of(name) / "snapshots" / commit
    known = re.fullmatch("[0-9A-Za-z]+", commit) is not None
    return folder if known and any((folder / file).exists() for file in (FIRST, *FILES)) else None


def fetch_tokenizer(name: str) -> None:
    """Bring the newest files of a hub's tokenizer into the cache.

    Raises InputError where the hub refuses, has no tokenizer under that name, or does not answer in time and nothing
    is cached.
    """
    cached = cached_folder(name) is not None
    try:
        for _ in range(ROUNDS):
            try:
                return _fetch_all(name, CACHED_PATIENCE_S if cached else None)
            except _Moved:
                continue
        raise InputError(f"{name}: its files change faster than they can be fetched; run the same command again")
    except InputError as error:
        if not cached:
            raise
        report_line(f"tokenizer {name}: the cached one is used ({error})", at_once=True)


def _fetch_all(name: str, patience_s: float | None) -> None:
    first = _get(name, FIRST, patience_s)
    contents = {FIRST: first.body} if first.status == 200 else {}
    commit = first.headers.get("x-repo-commit", "")
    known = re.fullmatch("[0-9a-f]{40}", commit) is not None
    snapshot, missing = cache_of(name) / "snapshots" / commit, cache_of(name) / ".no_exist" / commit
    for file in FILES:
        if known and ((snapshot / file).exists() or (missing / file).exists()):
            continue
        answer = _get(name, file, patience_s)
        if answer.headers.get("x-repo-commit", commit) != commit:
            raise _Moved
        if answer.status == 200:
            contents[file] = answer.body
        elif known:
            _write(missing / file, b"")
    if not known:  # a mirror that tells no commit: named by what it holds
        digest = hashlib.sha256()
        for file, content in sorted(contents.items()):
            digest.update(file.encode() + b"\0" + hashlib.sha256(content or b"").digest())
        commit = digest.hexdigest()[:40]
        snapshot = cache_of(name) / "snapshots" / commit
    if not contents and not (known and snapshot.is_dir()):
        raise InputError(f"{url_of(name)}: holds none of {', '.join((FIRST, *FILES[:5]))}, ...")
    for file, content in contents.items():
        if not (snapshot / file).exists():
            _write(snapshot / file, content or b"")
    _write(cache_of(name) / "refs" / "main", commit.encode())


def _get(name: str, file: str, patience_s: float | None) -> Answer:
    """A complete file of the branch main; or an answer of status 404."""
    url = url_of(name, "resolve/main", file)

    def accept(answer: Answer) -> Answer | None:
        if answer.status == 404:
            return answer
        etag = answer.etag or ""
        if answer.status != 200 or answer.body is None:
            return None
        length = answer.headers.get("content-length", "")
        if length.isdigit() and "content-encoding" not in answer.headers and int(length) != len(answer.body):
            return None
        if re.fullmatch("[0-9a-f]{64}", etag) and hashlib.sha256(answer.body).hexdigest() != etag:
            raise ValueError("its bytes are not those of the hub (sha256)")
        return answer

    return request(url, accept, {"Accept-Encoding": "identity"}, patience_s=patience_s)


def _write(path: Path, content: bytes) -> None:
    """Complete or not at all: other processes fetch the same."""
    aside = aside_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        os.replace(aside, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); set HF_HOME to a folder that can") from None
