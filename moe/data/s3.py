"""A folder on a bucket, s3://bucket/prefix, through boto3.

- Requests, endpoint and credentials are those of moe/common/s3.py; a body that breaks off is asked for again here.
- What is being made lies in the folder for temporary files (TMPDIR), locked by its process, so that what a killed one
  left can be recognised and removed.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from moe.common.errors import InputError
from moe.common.paths import data_address
from moe.common.s3 import ATTEMPTS, bucket_and_prefix, client, code_of, reason_and_fix
from moe.data.folders import Folder
from moe.data.hub_client import pause

SCRATCH = "moe-convert-"
SCRATCH_MARK = ".of-a-conversion"  # beside the folder that is worked in
NEW_S = 60  # a scratch folder younger than this may not be locked yet


@contextmanager
def s3_errors(where: str) -> Iterator[None]:
    """Turns the errors of requests about `where` into InputError."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise InputError(f"{where}: {reason_and_fix(error)}") from None


def remove_dead_scratch() -> None:
    """Remove the scratch folders of processes that are no more."""
    for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - path.stat().st_mtime > NEW_S and (path / SCRATCH_MARK).is_file():
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # its process lives
            pass
        finally:
            os.close(handle)


@dataclass(frozen=True)
class S3Folder:
    bucket: str
    prefix: str  # without a slash at either end

    @staticmethod
    def parse(address: str) -> S3Folder:
        """Raises InputError unless `address` is s3://bucket/prefix, and one that Streaming can read too."""
        bucket, prefix = bucket_and_prefix(data_address(address, "the dataset"))
        if not bucket or not prefix:
            raise InputError(f"{address}: name a bucket and a folder in it, such as s3://bucket/fineweb-10bt")
        return S3Folder(bucket, prefix)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def __truediv__(self, name: str) -> S3Folder:
        return S3Folder(self.bucket, self._key(name))

    def beside(self, suffix: str) -> S3Folder:
        return S3Folder(self.bucket, self.prefix + suffix)

    def _objects(self) -> Iterator[tuple[str, int]]:
        """(name, bytes)"""
        with s3_errors(str(self)):
            pages = client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=f"{self.prefix}/"):
                yield from ((entry["Key"][len(self.prefix) + 1 :], entry["Size"]) for entry in page.get("Contents", []))

    def _files(self) -> Iterator[tuple[str, int]]:
        """(name, bytes), without what consoles put there for folders: names that end in a slash."""
        return ((name, size) for name, size in self._objects() if name and not name.endswith("/"))

    def is_empty(self) -> bool:
        return next(self._files(), None) is None

    def sizes(self) -> dict[str, int]:
        return dict(self._files())

    def read(self, name: str) -> bytes | None:
        from botocore import exceptions

        broken = (exceptions.IncompleteReadError, exceptions.ResponseStreamingError, exceptions.ReadTimeoutError)
        with s3_errors(f"{self}/{name}"):
            for attempt in range(ATTEMPTS):
                try:
                    return client().get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
                except (exceptions.ClientError, *broken) as error:
                    code = code_of(error)
                    if code == "NoSuchKey":
                        return None
                    if attempt + 1 == ATTEMPTS or code not in ("", "404"):  # 404: an answer that broke off
                        raise
                    time.sleep(pause(attempt, None))
        raise AssertionError

    def open(self, name: str) -> BinaryIO | None:
        content = self.read(name)  # at most a shard
        return None if content is None else io.BytesIO(content)

    def write(self, name: str, content: bytes | Iterator[bytes]) -> None:
        content = content if isinstance(content, bytes) else b"".join(content)
        with s3_errors(f"{self}/{name}"):
            client().put_object(Bucket=self.bucket, Key=self._key(name), Body=content)

    @contextmanager
    def scratch(self, label: str) -> Iterator[Path]:
        path = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{label}."))
        handle = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):  # a temporary folder without locks: what a killed process leaves there stays
                fcntl.flock(handle, fcntl.LOCK_EX)
            (path / SCRATCH_MARK).touch()
            (path / "made").mkdir()
            yield path / "made"
        finally:
            shutil.rmtree(path, ignore_errors=True)
            os.close(handle)

    def put(self, path: Path, name: str) -> None:
        with s3_errors(f"{self}/{name}"), open(path, "rb") as file:
            client().put_object(Bucket=self.bucket, Key=self._key(name), Body=file)

    def adopt(self, made: Path, name: str, mark: str) -> None:
        for path in sorted(made.iterdir(), key=lambda path: (path.name == mark, path.name)):
            self.put(path, f"{name}/{path.name}")

    def copy(self, source: Folder, name: str, own_name: str) -> None:
        assert isinstance(source, S3Folder)
        origin = {"Bucket": source.bucket, "Key": source._key(name)}
        with s3_errors(f"{self}/{own_name}"):
            client().copy_object(Bucket=self.bucket, Key=self._key(own_name), CopySource=origin)

    def delete(self, names: list[str] | None = None) -> None:
        keys = [self._key(name) for name in (dict(self._objects()) if names is None else names)]
        with s3_errors(str(self)):
            for start in range(0, len(keys), 1000):  # the most that one request may name
                objects = [{"Key": key} for key in keys[start : start + 1000]]
                answer = client().delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
                for error in answer.get("Errors", [])[:1]:
                    raise InputError(
                        f"s3://{self.bucket}/{error.get('Key')} cannot be removed ({error.get('Code')}); allow "
                        "s3:DeleteObject, and run the same command again"
                    )
