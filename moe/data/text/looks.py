"""Is this text? What the first bytes of a file say that is none, each with its fix.

- Looked at: the first HEAD_BYTES, unpacked. A file that is something else altogether is refused by name; a broken
  document in a file of text is skipped and counted by itself (rows.py).
- Encodings other than UTF-8 are named, never converted: a wrong guess would be trained on.
"""

from __future__ import annotations

import shlex
import unicodedata

HEAD_BYTES = 64 << 10
BOM = b"\xef\xbb\xbf"
NUL_SHARE = 0.1  # of bytes: above it nobody means text
MUCH_ODD, LITTLE_ODD = 0.1, 0.02  # of characters: see _odd_share
FEW_BAD = 8  # sequences that are no UTF-8: below it the documents are judged one by one

# UTF-32 before UTF-16, whose mark is the front of UTF-32's
MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
UNMARKED = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")
MAGIC = (
    (b"\x1f\x8b", "gzip data; give it a name that ends in .gz"),
    (b"\x28\xb5\x2f\xfd", "zstd data; give it a name that ends in .zst"),
    (b"\xfd7zXZ\x00", "xz data; unpack it with `unxz`"),
    (b"BZh", "bzip2 data; unpack it with `bunzip2`"),
    (b"PK\x03\x04", "a zip archive; unpack it with `unzip`"),
    (b"%PDF-", "a PDF; take its text out, as with `pdftotext`"),
    (b"PAR1", "a parquet file; give it a name that ends in .parquet"),
    (b"ARROW1", "an Arrow file; give it a name that ends in .arrow"),
)
LFS = b"version https://git-lfs.github.com/spec/"


def pointer_or_page(head: bytes) -> str | None:
    """What stands here in place of the file: a Git LFS pointer, or a server's page; None for neither."""
    start = head[:1024].removeprefix(BOM).lstrip().lower()
    if start.startswith(LFS):
        return "a Git LFS pointer, not the file itself; fetch that with `git lfs pull`"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, as servers send in place of a file; fetch the file again"
    if start.startswith((b"<?xml", b"<error>")) and b"<error>" in start and b"<code>" in start:
        return "a server's error message in XML; fetch the file again"
    return None


def head_error(head: bytes, name: str) -> str | None:
    """Why a file called `name` that begins with `head` is no text in UTF-8, and what fixes it; None where it may be."""
    if error := pointer_or_page(head):
        return f"is {error}"
    if not head:
        return None
    for magic, what in MAGIC:
        if head.startswith(magic) and _binary(head):
            return f"is {what}"
    if encoding := _utf16_or_32(head):
        return f"is in {encoding}, not UTF-8; {_iconv(encoding, name)}"
    if head.count(0) > NUL_SHARE * len(head):
        return f"holds {head.count(0):,} NUL bytes in its first {len(head):,}: it is not text; fetch it again"
    if head.isascii():
        return None
    text = head.decode("utf-8", "surrogateescape")
    bad = sum("\udc80" <= char <= "\udcff" for char in text[:-3])  # a character may be cut at the end
    good = sum(char > "\x7f" for char in text) - bad
    if bad >= FEW_BAD and bad > good:
        return f"is not UTF-8 ({bad} bad bytes at its front); for Western texts: {_iconv('WINDOWS-1252', name)}"
    return None


def _binary(head: bytes) -> bool:
    """Whether there is more behind a file type's first letters than a text would have ("BZh" may be a word)."""
    try:
        head[:-3].decode()
    except UnicodeDecodeError:
        return True
    return 0 in head or head.startswith(b"%PDF-")


def _odd_share(text: str) -> float:
    """The share of characters that text has few of: control characters, unassigned, private and lone surrogates."""
    odd = sum(char not in "\t\n\r\f" and unicodedata.category(char) in ("Cc", "Cn", "Co", "Cs") for char in text)
    return odd / max(1, len(text))


def _utf16_or_32(head: bytes) -> str | None:
    """The encoding by its mark; without one the encoding that makes text of bytes that are none in UTF-8."""
    if named := next((encoding for mark, encoding in MARKS if head.startswith(mark)), None):
        return named
    if 0 not in head or _odd_share(head.decode("utf-8", "surrogateescape")) <= MUCH_ODD:
        return None
    whole = head[: len(head) // 4 * 4]
    decoded = {name: whole.decode(name, "replace").replace("\ufffd", "\0") for name in UNMARKED}
    likely = [name for name, text in decoded.items() if _odd_share(text) <= LITTLE_ODD]
    # Latin text in the wrong order is Chinese: white space and full stops tell
    return max(likely, key=lambda name: sum(map(decoded[name].count, " \n.")), default=None)


def _iconv(encoding: str, name: str) -> str:
    file, stem = name.rsplit("/", 1)[-1], name.rsplit("/", 1)[-1]
    return f"`iconv -f {encoding} -t UTF-8 {shlex.quote(file)} > {shlex.quote('utf8-' + stem)}` makes a copy that is"
