"""Lines of jsonl that are too long to be looked at whole."""

import gzip
import json
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest

from moe.data.text import json_array, lines
from moe.data.text.errors import BadFileError
from moe.data.text.files import SourceFile, kind_of
from moe.data.text.reading import looked_at
from moe.data.write.convert import convert
from tests.unit.data.conftest import make_texts

ROWS = [{"text": f"words of row {i}", "n": [i, {"deep": i}]} for i in range(150_000)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for module in (lines, json_array):
        monkeypatch.setattr(module, "PEEK_BYTES", 100_000)


@contextmanager
def peak_below(size: int):
    """size: bytes that Python may hold within it at most."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def file_of(path: Path, content: str) -> SourceFile:
    data = content.encode()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return SourceFile(path.name, str(path), kind_of(path.name) or "", path.stat().st_size, "")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz"])
def test_an_object_with_all_rows_in_one_line_is_refused_in_little_memory(tmp_path, name):
    """A line of 63 MB took 750 MB while files were looked at, before it was refused."""
    file = file_of(tmp_path / name, json.dumps({"version": {"text": 1}, "data": ROWS}))
    told = r"no column 'text'.* version, data.*`jq -c '\.data\[\]'`"
    with peak_below(4_000_000), pytest.raises(BadFileError, match=told):
        looked_at(file, "text")


def test_an_array_under_the_name_of_lines_is_refused_in_little_memory(tmp_path):
    file = file_of(tmp_path / "a.jsonl", json.dumps(ROWS))
    with peak_below(4_000_000), pytest.raises(BadFileError, match=r"not JSON objects.*`jq -c '\.\[\]'`"):
        looked_at(file, "text")


def test_an_array_around_an_object_with_all_rows_is_refused_in_little_memory(tmp_path):
    file = file_of(tmp_path / "a.json", json.dumps([{"version": 1, "data": ROWS}]))
    with peak_below(12_000_000), pytest.raises(BadFileError, match="no column 'text'; there are version, data"):
        looked_at(file, "text")
    text = "long " * 1_000_000
    assert looked_at(file_of(tmp_path / "b.json", json.dumps([{"id": 1, "text": text}])), "text").kind == "json"


@pytest.mark.parametrize("column", ["text", "doc.text", "doc"])
@pytest.mark.parametrize("cut", ["in the text", "behind it"])
def test_a_long_document_is_one_whatever_its_length(tmp_path, make_request, column, cut):
    """Its column is named in its front; the rest of the line is not looked at."""
    text = " ".join(make_texts(10)) * (400 if cut == "in the text" else 1)
    row = {"id": "ü\"\\", "doc": {"text": text}, "more": "x" * 200_000} if column == "doc.text" else {
        "id": 'ü"\\', "n": [1, {"x": None}], column: text, "more": "x" * 200_000
    }  # fmt: skip
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.jsonl").write_text(json.dumps(row) + "\n" + "[1]\n", encoding="utf-8")
    meta = convert(make_request(text_column=column, val_fraction=0.0))
    assert sum(meta.documents.values()) == 1 and meta.text_bytes == len(text.encode())


def test_rows_before_a_long_line_are_looked_at(tmp_path):
    content = '{"text": "short"}\n' + json.dumps({"data": ROWS[:9000]}) + "\n"
    assert looked_at(file_of(tmp_path / "a.jsonl", content), "text").kind == "jsonl"
    with pytest.raises(BadFileError, match="no column 'body'; there are text, data"):
        looked_at(file_of(tmp_path / "a.jsonl", content), "body")
