"""Files on the hub as bytes, range by range.

- Only the ranges that hold the wanted columns are fetched; nothing is kept on the disk.
- Every request is tried again after 429 (as Retry-After or the hub's RateLimit header says), 5xx, a dropped or short
  body, or a stall, with growing random pauses. A range counts only when all its bytes came, so no row is lost or
  doubled.
"""

from __future__ import annotations

import collections
import contextlib
import io
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from moe.errors import InputError

TRIES = 8
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
REFUSALS = (401, 403, 404, 410, 416)  # trying again would not help
KEPT_BLOCKS = 4  # text and id of one row group are read in turn


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def asked_pause(status: int, headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks to wait: Retry-After, as a number or a date (RFC 9110, 10.2.3), else, of a 429, the time
    until its window ends (https://huggingface.co/docs/hub/rate-limits). None when it asks for nothing.
    """
    asked = (headers.get("Retry-After") or "").strip()
    if asked.isdigit():
        return float(asked)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(timezone.utc)).total_seconds())
    window = re.search(r"\bt=(\d+)", headers.get("RateLimit") or "") if status == 429 else None
    return float(window[1]) if window else None


def pause(attempt: int, asked_s: float | None) -> float:
    """Seconds to wait after failed attempt 0, 1, ...: what the server asks for, or a random part of a doubling span."""
    if asked_s is not None:
        return min(asked_s, 10 * LONGEST_PAUSE_S)
    return random.uniform(0.5, 1) * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)


def request(url: str, accept: Callable[[int, bytes], Any], headers: dict[str, str] | None = None) -> Any:
    """What `accept(status, body)` makes of the answer, asked again while that is None or a ValueError.

    Raises InputError when the server refuses, or gives nothing acceptable in TRIES tries.
    """
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.utils import build_hf_headers, get_session

    fault = ""
    for attempt in range(TRIES):
        asked_s = None
        try:
            every = {**build_hf_headers(), **(headers or {})}
            response: Any = get_session().get(url, headers=every, timeout=HF_HUB_DOWNLOAD_TIMEOUT)
            status, body = response.status_code, response.content
            fault = (
                f"HTTP {status}" if status not in (200, 206) else f"a body of {len(body)} bytes that is not all of it"
            )
            asked_s = asked_pause(status, response.headers)
            answer = accept(status, body)
            if answer is not None:
                return answer
        except Exception as error:  # requests or httpx, whichever huggingface_hub uses: dropped, cut, stalled, refused
            fault, status = f"{type(error).__name__}: {error}"[:200], 0
        if status in REFUSALS:
            raise InputError(f"{url}: HTTP {status}; check the name, or log in with `hf auth login`")
        if attempt + 1 < TRIES:
            time.sleep(pause(attempt, asked_s))
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
