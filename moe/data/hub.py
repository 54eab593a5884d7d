"""Datasets on the hub: which files a config names, at one commit, and their bytes, range by range.

- Only the ranges that hold the wanted columns are fetched; nothing is kept on the disk.
- Every request is tried again after 429 (as Retry-After says), 5xx, a dropped or short body, or a stall, with growing
  random pauses. A range counts only when all its bytes came, so no row is lost or doubled.
"""

from __future__ import annotations

import collections
import io
import json
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe.data.sources import Source, SourceFile, kind_of, select_files
from moe.errors import InputError

TRIES = 8
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
REFUSALS = (401, 403, 404, 410, 416)  # trying again would not help
KEPT_BLOCKS = 4  # text and id of one row group are read in turn


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def is_hub_name(name: str) -> bool:
    """Whether `name` is `organisation/dataset` and nothing on this machine."""
    pattern = r"[\w-][\w.-]*/[\w-][\w.-]*"
    return not Path(name).exists() and kind_of(name) is None and re.fullmatch(pattern, name) is not None


def pause(attempt: int, retry_after: str | None) -> float:
    """Seconds to wait after failed attempt 0, 1, ...: what the server asks for, or a random part of a doubling span."""
    if retry_after is not None and retry_after.strip().isdigit():
        return min(float(retry_after), 10 * LONGEST_PAUSE_S)
    return random.uniform(0.5, 1) * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)


def request(url: str, accept: Callable[[int, bytes], Any], headers: dict[str, str] | None = None) -> Any:
    """What `accept(status, body)` makes of the answer, asked again while that is None or a ValueError.

    Raises InputError when the server refuses, or gives nothing acceptable in TRIES tries.
    """
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.utils import build_hf_headers, get_session

    fault = ""
    for attempt in range(TRIES):
        retry_after = None
        try:
            every = {**build_hf_headers(), **(headers or {})}
            response: Any = get_session().get(url, headers=every, timeout=HF_HUB_DOWNLOAD_TIMEOUT)
            status, body = response.status_code, response.content
            fault = (
                f"HTTP {status}" if status not in (200, 206) else f"a body of {len(body)} bytes that is not all of it"
            )
            retry_after = response.headers.get("Retry-After")
            answer = accept(status, body)
            if answer is not None:
                return answer
        except Exception as error:  # requests or httpx, whichever huggingface_hub uses: dropped, cut, stalled, refused
            fault, status = f"{type(error).__name__}: {error}"[:200], 0
        if status in REFUSALS:
            raise InputError(f"{url}: HTTP {status}; check the name, or log in with `hf auth login`")
        if attempt + 1 < TRIES:
            time.sleep(pause(attempt, retry_after))
    raise InputError(f"{url} cannot be fetched, {TRIES} tries ended in {fault}; run the same command again later")


def fetch_range(url: str, first: int, count: int) -> bytes:
    """`count` bytes from `first`; never fewer."""
    # a compressed body would have another length
    headers = {"Range": f"bytes={first}-{first + count - 1}", "Accept-Encoding": "identity"}
    return request(url, lambda status, body: body if status == 206 and len(body) == count else None, headers)


class HubFile(io.RawIOBase):
    """A file of a hub dataset as a seekable stream; the last few blocks of `block_bytes` stay in memory."""

    def __init__(self, path: str, size: int, *, block_bytes: int) -> None:
        self._url, self._size, self._block_bytes = f"{endpoint()}/{path}", size, block_bytes
        self._position = 0
        self._blocks: collections.OrderedDict[int, bytes] = collections.OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill from the block at the position; fewer bytes than asked for at a block's or the file's end."""
        number, offset = divmod(self._position, self._block_bytes)
        if self._position >= self._size:
            return 0
        if number not in self._blocks:
            first = number * self._block_bytes
            self._blocks[number] = fetch_range(self._url, first, min(self._block_bytes, self._size - first))
            if len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        part = self._blocks[number][offset : offset + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


def hub_source(name: str, *, config: str | None, split: str, revision: str | None) -> Source:
    """The files of a hub dataset's config and split. Raises InputError when the hub does not have them."""
    try:
        api = f"{endpoint()}/api/datasets/{name}/revision/{revision or 'main'}?blobs=true"
        info = request(api, lambda status, body: json.loads(body) if status == 200 else None)
    except InputError as error:
        mend = "or give the path of a folder or file that exists on this machine"
        raise InputError(
            f"--dataset {name}" + (f" --revision {revision}" if revision else "") + f": {error}; {mend}"
        ) from error
    siblings = {entry["rfilename"]: entry for entry in info["siblings"]}
    base = f"datasets/{name}/resolve/{info['sha']}"
    readme = None
    if (entry := siblings.get("README.md")) and entry["size"]:
        readme = fetch_range(f"{endpoint()}/{base}/README.md", 0, entry["size"]).decode("utf-8", "replace")
    files = []
    for file in select_files(sorted(siblings), readme, dataset=name, config=config, split=split):
        kind, entry = kind_of(file), siblings[file]
        assert kind is not None
        version = (entry.get("lfs") or {}).get("sha256") or entry.get("blobId") or info["sha"]
        files.append(SourceFile(file, f"{base}/{file}", kind, entry.get("size") or 0, version, remote=True))
    if not files:
        raise InputError(
            f"--dataset {name}: no parquet, jsonl, jsonl.gz or txt file for config {config}, split {split}"
        )
    return Source(files, info["sha"])
