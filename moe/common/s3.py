"""Files under an s3:// address, through boto3.

Decisions:
- Credentials and region are found as boto3 finds them; the endpoint is S3_ENDPOINT_URL, as for Streaming, or
  AWS_ENDPOINT_URL.
- botocore tries each request again with growing random pauses: throttling, 5xx, lost connections, timeouts.
- Errors are reported with the address and the fix, never with a credential.
- What cannot be done is a RemoteError, which is an OSError: a full disk and a lost bucket are handled alike.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from moe.common.errors import InputError
from moe.common.moved import MOVED

ATTEMPTS = 10
T = TypeVar("T")
REFUSALS = (
    "403,AccessDenied,AllAccessDisabled,InvalidAccessKeyId,SignatureDoesNotMatch,ExpiredToken,InvalidToken".split(",")  # noqa: SIM905
)


@lru_cache(maxsize=1)
def _client(endpoint_url: str | None) -> Any:
    import boto3
    from botocore.config import Config

    retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
    config = Config(connect_timeout=10, read_timeout=60, retries=retries, max_pool_connections=16)
    return boto3.session.Session().client("s3", config=config, endpoint_url=endpoint_url)


def client() -> Any:
    """This process's connection. Raises InputError for an endpoint that is no address."""
    endpoint_url = os.environ.get("S3_ENDPOINT_URL") or None
    try:
        return _client(endpoint_url)
    except ValueError as error:
        raise InputError(
            f"S3_ENDPOINT_URL: {without_password(str(error))}; give an address such as https://host:port"
        ) from None


def without_password(text: str) -> str:
    """`text` without the user and password of addresses in it."""
    return re.sub(r"//[^/@\s]+@", "//", text)


def code_of(error: Exception) -> str:
    """What the server calls the error; empty where it said nothing."""
    response = getattr(error, "response", None) or {}  # None where a body broke off
    return str(response.get("Error", {}).get("Code", ""))


def reason_and_fix(error: Exception) -> str:
    from botocore import exceptions

    code = code_of(error)
    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`"
    if code == "NoSuchBucket":
        return "no such bucket; create it or correct the address"
    if code in REFUSALS:
        return f"refused ({code}); check the credentials and what they may do with this bucket"
    if isinstance(error, exceptions.ParamValidationError) or code == "InvalidBucketName":
        return "not a bucket's name; correct the address"
    last = last_of(error) or error
    text = without_password(str(last)).strip().splitlines()
    return f"{(text or [type(last).__name__])[0][:300]}; what is done is kept: run the same command again"


def bucket_and_prefix(address: str) -> tuple[str, str]:
    """Of s3://bucket/prefix, the prefix without a slash at either end; empty where there is none. To S3 `#`, `?` and
    `%` are letters of a name: this is no URL, and nothing of it is cut off.
    """
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    return bucket, prefix.strip("/")


class RemoteError(OSError):
    """The remote cannot be used; the message names the address and the cause."""


class RemoteAway(RemoteError):
    """It does not answer, or is too busy: it may later."""


def may_pass(error: BaseException | None) -> bool:
    """Whether the same request may do later: no connection, a timeout, an error of the server's own."""
    from botocore import exceptions

    broken = (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError)
    while error is not None:  # what boto3 raises of transfers stands before the cause
        if isinstance(error, (*broken, ConnectionError, TimeoutError)):
            return not isinstance(error, exceptions.SSLError)
        response = getattr(error, "response", None) or {}
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status >= 500 or status == 429:
            return True
        error = last_of(error) or error.__context__
    return False


def last_of(error: BaseException) -> BaseException | None:
    """The error of the last try, where boto3 gave up after several."""
    return getattr(error, "last_exception", None)


class RemoteFolder:
    """One folder on s3: names are relative to `url`, `/` between their parts."""

    def __init__(self, url: str):
        self.url, (self.bucket, self.prefix) = url.rstrip("/"), bucket_and_prefix(url)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _try(self, what: str, call: Callable[[], T]) -> T:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return call()
        except (Boto3Error, BotoCoreError, ClientError) as error:
            kind = RemoteAway if may_pass(error) else RemoteError
            raise kind(f"{self.url}: cannot {what}: {reason_and_fix(error)}") from None

    def list(self, under: str = "") -> dict[str, int]:
        """Names and bytes of all files whose name starts with `under`. Whoever may write to the bucket chose the
        names: what makes a path of one checks it (moe/common/untrusted_names.py).
        """

        def call() -> dict[str, int]:
            pages = client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(under))
            start = len(self._key(""))
            found = {item["Key"][start:]: item["Size"] for page in pages for item in page.get("Contents", ())}
            return {name: size for name, size in found.items() if name and not name.endswith("/")}  # consoles' folders

        return self._try("list", call)

    def upload(self, path: Path, name: str) -> None:
        self._try(
            f"write {name}", lambda: client().upload_file(str(path), self.bucket, self._key(name), Callback=MOVED.add)
        )

    def download(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._try(f"read {name}", lambda: client().download_file(self.bucket, self._key(name), str(path)))

    def read(self, name: str) -> bytes | None:
        """The file's bytes; None where there is none."""
        if name not in self.list(name):
            return None
        return self._try(
            f"read {name}", lambda: client().get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
        )

    def write(self, name: str, content: bytes) -> None:
        self._try(f"write {name}", lambda: client().put_object(Bucket=self.bucket, Key=self._key(name), Body=content))

    def rename(self, name: str, new_name: str) -> None:
        """Copies, on the server, and deletes."""
        source = {"Bucket": self.bucket, "Key": self._key(name)}
        self._try(f"write {new_name}", lambda: client().copy(source, self.bucket, self._key(new_name)))
        self.delete([name])

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._try(f"delete {name}", partial(client().delete_object, Bucket=self.bucket, Key=self._key(name)))
