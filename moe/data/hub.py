"""Datasets on the hub: what they hold, and their files as bytes, range by range.

- Only the ranges that hold the wanted columns are fetched; nothing is kept on the disk.
- A range counts only when all its bytes came, so no row is lost or doubled. It is held against the file's size
  (Content-Range) and its ETag; a file read from its front to its end also against the listing's own hash
  (hub_proof.py).
- A server that ignores ranges sends the complete file: up to WHOLE_BYTES that is used, above it is an error that says
  so.
- Names of a listing are checked before any address is made of them (moe/common/untrusted_names.py).
"""

from __future__ import annotations

import collections
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict
from urllib.parse import quote

from moe.common.errors import InputError
from moe.common.typed_json import parse_json
from moe.common.untrusted_names import file_name, plain_name
from moe.data.hub_client import Answer, request, shown, url_of
from moe.data.hub_proof import Proof

KEPT_BLOCKS = 4  # text and id of one row group are read in turn
WHOLE_BYTES = 64 << 20
MISREAD_TRIES = 3
IDENTITY = {"Accept-Encoding": "identity"}  # a compressed body would have another length


@dataclass(frozen=True)
class HubEntry:
    """A file of a hub dataset.

    size: None where the listing has none. sha256: of the content, for LFS files. blob_id: git's, of any content.
    """

    path: str
    size: int | None
    sha256: str | None
    blob_id: str | None

    @property
    def listed(self) -> str | None:
        """The hash that the listing gives of all its bytes: `sha256:HEX` or `git:HEX`; None where it gives none."""
        if self.sha256 is not None:
            return f"sha256:{self.sha256}"
        return f"git:{self.blob_id}" if self.blob_id and re.fullmatch("[0-9a-f]{40}", self.blob_id) else None


@dataclass(frozen=True)
class Listing:
    """A dataset at one commit: its files, sorted by path."""

    name: str
    commit: str
    files: list[HubEntry]

    def url_path(self, entry: HubEntry) -> str:
        """Where the file lies below the endpoint, unquoted. Raises InputError for a name that no file has."""
        return f"datasets/{self.name}/resolve/{self.commit}/{file_name(entry.path, f'the listing of {self.name}')}"

    def size_of(self, entry: HubEntry) -> int:
        """Bytes, asked for where the listing has none. Raises InputError where nobody tells."""
        if entry.size is not None:
            return entry.size
        url = url_of(self.url_path(entry))
        headers = request(url, lambda answer: answer.headers if answer.status == 200 else None, IDENTITY, method="HEAD")
        length = headers.get("x-linked-size") or headers.get("content-length") or ""
        if not length.isdigit():
            raise InputError(
                f"{self.name}: neither the listing nor the server tells the size of {shown(entry.path)}; fetch the "
                "dataset with `hf download`, and give its folder"
            )
        return int(length)

    def text_of(self, entry: HubEntry) -> str:
        """A small file's text; what is no UTF-8 becomes U+FFFD."""
        size = self.size_of(entry)
        with HubFile(self.url_path(entry), size, block_bytes=max(1, size), listed=entry.listed) as file:
            return file.readall().decode("utf-8", "replace")


class _Info(TypedDict):
    sha: str
    siblings: list[Any]


def _entry(found: Any) -> HubEntry:
    if not isinstance(found, dict) or not isinstance(found.get("rfilename"), str):
        raise ValueError("a file without a name")
    lfs = found["lfs"] if isinstance(found.get("lfs"), dict) else {}
    size, sha256, blob = found.get("size", lfs.get("size")), lfs.get("sha256"), found.get("blobId")
    return HubEntry(
        found["rfilename"],
        size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None,
        sha256.lower() if isinstance(sha256, str) and re.fullmatch("[0-9a-fA-F]{64}", sha256) else None,
        blob if isinstance(blob, str) else None,
    )


def dataset_listing(name: str, revision: str | None) -> Listing:
    """The dataset's files at `revision`: a branch, a tag, a commit, a ref such as refs/convert/parquet; None: main.

    Raises InputError when the hub does not have it, or answers what is no listing.
    """
    api = f"{url_of('api/datasets', name, 'revision')}/{quote(revision or 'main', safe='')}?blobs=true"
    misread: list[ValueError] = []

    def read(answer: Answer) -> Listing | None:
        if answer.status != 200:
            return None
        try:
            info = parse_json(answer.body or b"", _Info)
            files = sorted((_entry(found) for found in info["siblings"]), key=lambda entry: entry.path)
            return Listing(name, plain_name(info["sha"], "the commit"), files)
        except ValueError as error:
            misread.append(error)
            if len(misread) < MISREAD_TRIES:
                raise
            start = shown((answer.body or b"")[:80].decode("utf-8", "replace"))
            raise InputError(
                f"{api}: the answer is not a listing of files ({shown(str(error))}); it begins with {start!r}: "
                "check HF_ENDPOINT and the network's proxy"
            ) from None

    return request(api, read)


def fetch_range(url: str, first: int, count: int, size: int) -> tuple[bytes, str | None]:
    """`count` bytes from `first` of a file of `size` bytes, never fewer, and its ETag. The complete file instead where
    the server knows no ranges and the file is small.

    Raises InputError where the file has another size, or is large and can only be had complete.
    """
    name = shown(url)

    def wants_body(status: int, headers: Mapping[str, str]) -> bool:
        length = headers.get("content-length", "")
        return status != 200 or (size <= WHOLE_BYTES and (not length.isdigit() or int(length) <= size))

    def accept(answer: Answer) -> tuple[bytes, str | None] | None:
        body = answer.body
        if answer.status == 206 and body is not None:
            place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("content-range", "").strip())
            if place and place[2] not in ("*", str(size)):
                raise InputError(
                    f"{name}: the listing says {size} bytes, the server {place[2]}: it changed, or is not the one of "
                    "the listing; run the same command again"
                )
            right = len(body) == count and (place is None or int(place[1]) == first)
            return (body, answer.etag) if right else None
        if answer.status == 200 and body is None:
            length = answer.headers.get("content-length", "an unknown number of")
            raise InputError(
                f"{name}: the server ignores ranges and answers with all {length} bytes of the file, {size} in the "
                f"listing; that is done for at most {WHOLE_BYTES >> 20} MB. Use another HF_ENDPOINT, or fetch the "
                "dataset with `hf download` and give its folder"
            )
        whole = answer.status == 200 and body is not None and len(body) == size
        return (body, answer.etag) if whole and body is not None else None

    headers = {**IDENTITY, "Range": f"bytes={first}-{first + count - 1}"}
    return request(url, accept, headers, wants_body=wants_body)


class HubFile(io.RawIOBase):
    """A file of a hub dataset as a seekable stream; the last few blocks of `block_bytes` stay in memory.

    path: below the endpoint, unquoted. listed: the hash of all its bytes, as HubEntry.listed.
    """

    def __init__(self, path: str, size: int, *, block_bytes: int, listed: str | None = None) -> None:
        self._path, self._url, self._size, self._block_bytes = path, url_of(path), size, block_bytes
        self._position = 0
        self._blocks: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self._whole: bytes | None = None
        self._etag: str | None = None
        self._proof = None if listed is None else Proof(path, size, listed)

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
            self._blocks[number] = self._fetch(number * self._block_bytes)
            if len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        part = self._blocks[number][offset : offset + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _fetch(self, first: int) -> bytes:
        count = min(self._block_bytes, self._size - first)
        if self._whole is None:
            content, etag = fetch_range(self._url, first, count, self._size)
            if etag and self._etag and etag != self._etag:
                raise InputError(
                    f"{shown(self._url)}: the file changed while it was read (ETag {shown(self._etag)}, then "
                    f"{shown(etag)}); run the same command again"
                )
            self._etag = etag or self._etag
            if len(content) == count:
                self._hold(first, content)
                return content
            self._whole = content
            self._hold(0, content)
        return self._whole[first : first + count]

    def _hold(self, first: int, content: bytes) -> None:
        """Raises InputError where these are the last bytes of the file that were missing, and they are not its own."""
        if self._proof is not None and (error := self._proof.add(first, content)):
            raise InputError(
                f"{shown(self._url)}: its bytes are not those of the listing ({error}); run the same command again, "
                "without a proxy that changes files"
            )
