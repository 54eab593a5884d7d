"""Requests to the hub: the one way that anything of it is asked for.

- A request is tried again after 429, 5xx, a dropped or short body and a stall, for PATIENCE_S from its first error:
  time is counted, not tries. The server's own wish (Retry-After, the RateLimit header) is followed; one that is longer
  than what is left ends the wait at once. All pauses are random in part: many processes must not come back together.
- Where nobody is there from the start (no network, a wrong HF_ENDPOINT) it waits UNREACHED_S only.
- While it waits, it says what the hub answered; the last answer stands in the error, too.
- Redirects are followed here, hop by hop: the token goes to the endpoint's own host and to nobody else.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from moe.common.errors import InputError
from moe.common.units import clean_line, clock, note

PATIENCE_S, UNREACHED_S = 15 * 60.0, 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
REPORT_EVERY_S, WORKER_REPORTS_EVERY_S = 5.0, 30.0
MOST_HOPS = 5
REFUSALS = (400, 401, 403, 404, 405, 410, 416, 451)  # trying again would not help
REDIRECTS = (301, 302, 303, 307, 308)
T = TypeVar("T")
_last_reported: list[float] = []
_answered: set[str] = set()  # endpoints


@dataclass(frozen=True)
class Answer:
    """What the server sent. Header names are in lower case; `body` is None where it was not wanted."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None

    @property
    def etag(self) -> str | None:
        """The file's own on the hub, whichever server hands it out; else that of who did."""
        tag = self.headers.get("x-linked-etag") or self.headers.get("etag")
        return tag.removeprefix("W/").strip('"') if tag else None


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def url_of(*parts: str) -> str:
    """An address below the endpoint. `#`, `?`, `%` and spaces in a part are characters of a name there."""
    return "/".join([endpoint(), *(quote(os.fsencode(part), safe="/") for part in parts)])


def asked_pause(status: int, headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks to wait: Retry-After, as a number or a date (RFC 9110, 10.2.3), else, of a 429, the time
    until its window ends (https://huggingface.co/docs/hub/rate-limits). None when it asks for nothing.
    """
    named = {key.lower(): value for key, value in headers.items()}
    asked = named.get("retry-after", "").strip()
    if asked.isdigit():
        return float(asked)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(timezone.utc)).total_seconds())
    window = re.search(r"\bt=(\d+)", named.get("ratelimit", "")) if status == 429 else None
    return float(window[1]) if window else None


def pause(attempt: int, asked_s: float | None) -> float:
    """Seconds to wait after failed attempt 0, 1, ...: what the server asks for and up to a quarter more, or a random
    part of a doubling span.
    """
    if asked_s is not None:
        return asked_s * random.uniform(1, 1.25)
    return random.uniform(0.5, 1) * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempt, 20))


def host_of(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def may_have_token(url: str) -> bool:
    """Whether `url` is the endpoint's own host; its https is, where the endpoint is given as http."""
    here, there = host_of(endpoint()), host_of(url)
    return there == here or (here[0] == "http" and here[2] == 80 and there == ("https", here[1], 443))


@contextlib.contextmanager
def _opened(method: str, url: str, headers: dict[str, str]) -> Iterator[Any]:
    """The response before its body, of requests or of httpx, whichever huggingface_hub uses."""
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.utils import get_session

    session: Any = get_session()
    if hasattr(session, "follow_redirects"):
        with session.stream(
            method, url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=False
        ) as response:
            yield response
    else:
        with session.request(
            method, url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT, allow_redirects=False, stream=True
        ) as response:
            yield response


def ask_once(
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    wants_body: Callable[[int, Mapping[str, str]], bool] = lambda status, headers: True,
) -> Answer:
    """One request, redirects followed. Raises what the HTTP library does, and ValueError for a redirect to nowhere."""
    from huggingface_hub.utils import build_hf_headers

    linked: dict[str, str] = {}
    for _ in range(MOST_HOPS):
        own = build_hf_headers()
        if not may_have_token(url):
            own.pop("authorization", None)
        with _opened(method, url, {**own, **(headers or {})}) as response:
            found = {key.lower(): value for key, value in response.headers.items()}
            status = response.status_code
            linked |= {key: value for key, value in found.items() if key.startswith("x-linked-")}
            if status not in REDIRECTS or "location" not in found:
                wanted = method != "HEAD" and wants_body(status, found)
                body = (response.read() if hasattr(response, "read") else response.content) if wanted else None
                return Answer(status, {**found, **linked}, body)
        url = urljoin(url, found["location"])
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"it redirects to {url[:100]!r}, which is not a web address")
    raise ValueError(f"more than {MOST_HOPS} redirects")


def report_line(line: str, *, at_once: bool = False) -> None:
    """One line on stderr, at most every few seconds, however many threads wait; or `at_once`."""
    every = WORKER_REPORTS_EVERY_S if multiprocessing.parent_process() else REPORT_EVERY_S
    now = time.monotonic()
    if at_once or not _last_reported or now - _last_reported[0] >= every:
        _last_reported[:] = [now]
        note(line)


def shown(text: str) -> str:
    """What a server or a library says, fit to be printed on one line."""
    return clean_line(" ".join(text.split()))[:200]


def patiently(what: str, attempt_once: Callable[[], tuple[T | None, str, float | None]], patience_s: float) -> T:
    """The first answer that is not None of `attempt_once() -> (answer, error, seconds the server asks to wait)`.

    what: named in messages. Raises InputError when `patience_s` have passed, with the last error, and at once where the
    server asks for a longer pause than that.
    """
    begun, attempt = time.monotonic(), 0
    while True:
        answer, error, asked_s = attempt_once()
        if answer is not None:
            return answer
        now = time.monotonic()
        seconds, left = pause(attempt, asked_s), patience_s - (now - begun)
        attempt += 1
        if seconds > left:
            asks = f" and it asks for a pause of {clock(asked_s)}" if asked_s is not None and asked_s > left else ""
            raise InputError(
                f"{what} cannot be fetched: {attempt} tries in {clock(now - begun)}, the last ended in {error}{asks}; "
                "run the same command again later"
            )
        if seconds >= 1 or now - begun >= REPORT_EVERY_S:
            report_line(f"waiting for the hub, {clock(seconds)}: {error} ({shown(what)}; given up in {clock(left)})")
        time.sleep(seconds)


def request(
    url: str,
    accept: Callable[[Answer], T | None],
    headers: Mapping[str, str] | None = None,
    *,
    patience_s: float | None = None,
    **how: Any,
) -> T:
    """What `accept(answer)` makes of the answer, asked again while that is None or a ValueError.

    how: `method` and `wants_body` of `ask_once`. patience_s: None for PATIENCE_S. Raises InputError when the server
    refuses, `accept` does, or nothing acceptable comes in time.
    """

    begun = time.monotonic()

    def once() -> tuple[T | None, str, float | None]:
        try:
            answer = ask_once(url, headers, **how)
            _answered.add(endpoint())
            made = accept(answer)
        except InputError:
            raise
        except Exception as error:  # requests' or httpx's: dropped, cut, stalled, refused
            alone = endpoint() not in _answered and nobody_there(error)
            if alone and time.monotonic() - begun >= min(UNREACHED_S, PATIENCE_S):
                raise InputError(
                    f"{endpoint()} cannot be reached ({shown(type(error).__name__)}); check the network and HF_ENDPOINT"
                ) from None
            return None, shown(f"{type(error).__name__}: {error}"), None
        if made is None and answer.status in REFUSALS:
            raise InputError(f"{shown(url)}: HTTP {answer.status}; check the name, or log in with `hf auth login`")
        reason = f"HTTP {answer.status}"
        if answer.status in (200, 206):
            reason = f"a body of {len(answer.body or b'')} bytes that is not all of it"
        return made, reason, asked_pause(answer.status, answer.headers)

    return patiently(shown(url), once, PATIENCE_S if patience_s is None else patience_s)


def carefully(what: str, call: Callable[[], T]) -> T:
    """`call()` of a library that asks the hub itself, again after the errors after which `request` does so.

    Raises InputError where they do not pass, and at once whatever else `call` raises.
    """

    def once() -> tuple[T | None, str, float | None]:
        try:
            return call(), "", None
        except Exception as error:
            reason = passing(error)
            if reason is None:
                raise
            return None, *reason

    return patiently(what, once, PATIENCE_S)


def passing(error: BaseException) -> tuple[str, float | None] | None:
    """(what the server said or did, seconds it asks to wait) of an error that may pass; None of any other."""
    at: BaseException | None = error
    while at is not None:
        response: Any = getattr(at, "response", None)
        if response is not None:
            status = response.status_code
            busy = status == 429 or status >= 500
            return (f"HTTP {status}", asked_pause(status, response.headers)) if busy else None
        if re.search("Connection|Timeout|ChunkedEncoding|RemoteProtocol|ReadError", type(at).__name__):
            return None if nobody_there(at) else (shown(f"{type(at).__name__}: {at}"), None)
        at = at.__cause__ or at.__context__
    return None


def nobody_there(error: BaseException) -> bool:
    """Whether a request failed for want of an address, a way, or anybody listening: that does not pass by itself."""
    words = "refused|resolve|resolution|unreachable|ConnectTimeout|ConnectError"
    return re.search(words, repr(error), re.IGNORECASE) is not None
