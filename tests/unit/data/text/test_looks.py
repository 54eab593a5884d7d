"""What is no text is named with its fix; what is text passes."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe.common.errors import InputError
from moe.data.text.looks import head_error
from moe.data.text.rows import Skipped
from tests.unit.data.text.test_kinds import documents, zst

PROSE = "The lamp was out before the letter came, and nobody in the house had heard the door.\n" * 20
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not Found</body></html>"
S3_ERROR = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>'


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (PROSE.encode("utf-16"), "UTF-16, not UTF-8; `iconv -f UTF-16 -t UTF-8 'my notes.txt'"),
        (PROSE.encode("utf-16-le"), "UTF-16LE, not UTF-8; `iconv -f UTF-16LE"),
        (PROSE.encode("utf-16-be"), "UTF-16BE, not UTF-8; `iconv -f UTF-16BE"),
        ("\u7b2c\u4e00\u7ae0\u3002\n".encode("utf-16-le") * 50, "UTF-16LE, not UTF-8"),
        ("Глава первая. Было утро.\n".encode("utf-16-be") * 50, "UTF-16BE, not UTF-8"),
        (PROSE.encode("utf-32"), "UTF-32, not UTF-8; `iconv -f UTF-32 "),
        (PROSE.encode("utf-32-be"), "UTF-32BE, not UTF-8"),
        (PROSE.encode("utf-32-le"), "UTF-32LE, not UTF-8"),
        (b"\0" * 5000, "NUL bytes"),
        (("für über schön — größer " * 50).encode("cp1252"), "is not UTF-8 ("),
        (POINTER, "a Git LFS pointer, not the file itself; fetch that with `git lfs pull`"),
        (PAGE, "an HTML page"),
        (S3_ERROR, "a server's error message in XML"),
        (gzip.compress(PROSE.encode()), "gzip data; give it a name that ends in .gz"),
        (zst(PROSE.encode()), "zstd data"),
        (b"%PDF-1.7\n" + bytes(range(256)), "a PDF"),
    ],
)
def test_what_is_no_utf8_text_is_named_with_its_fix(tmp_path, content, told):
    """A9: whatever decodes was text."""
    with pytest.raises(InputError) as caught:
        documents(tmp_path, "my notes.txt", content)
    assert str(caught.value).startswith("my notes.txt: ") and told in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
@pytest.mark.parametrize(("content", "told"), [(POINTER, "git lfs pull"), (PAGE, "an HTML page")])
def test_a_pointer_or_a_page_is_named_whatever_it_is_called(tmp_path, name, content, told):
    """A9: in place of every kind of file."""
    with pytest.raises(InputError, match=told):
        documents(tmp_path, name, content)


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        "BZh is no word, but begins a text",
        "%PDF is a format",
        "one \0 byte in a text of letters, as crawls have it",
        "some \0 bytes \0 in a text of letters " * 50,
        "<p>html in the middle</p> <html>",
        "الكتاب والقلم 你好 ไทย " * 100,
        "é" * 40_000,  # cut within a character
        "a",
    ],
)
def test_text_is_text(text):
    assert head_error(text.encode()[: 64 << 10], "a.txt") is None


def test_a_document_of_nul_bytes_is_skipped_in_any_kind(tmp_path):
    """A9: rows of a table, one by one."""
    skipped = Skipped()
    pq.write_table(
        pa.table({"text": ["good", "\0" * 50, "a\0" * 9, "one \0 in ten letters", ""]}), tmp_path / "x.parquet"
    )
    found = documents(tmp_path, "x.parquet", (tmp_path / "x.parquet").read_bytes(), skipped=skipped)
    assert [text for text, _ in found] == ["good", "one \0 in ten letters"]
    assert skipped.counts == {"nul": 2, "empty": 1}
