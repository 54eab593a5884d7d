"""Rows, files and datasets that cannot be used: counted, named or refused; and what a fixed one gives."""

import gzip
import json

import pyarrow as pa
import pytest

from moe.common.errors import InputError
from moe.data.write.convert import convert
from tests.unit.data.conftest import folder_bytes, make_texts, write_parquet


def test_bad_rows_are_counted_by_reason_and_named(tmp_path, make_request):
    import pyarrow.parquet as pq

    (tmp_path / "text").mkdir()
    raw = pa.array([b"fine text here", None, b"", b" \n\t", b"\xff\xfe broken", b"also fine"], pa.binary()).view(
        pa.string()
    )
    pq.write_table(pa.table({"text": raw, "id": ["a", "b", "c", "d", "e", "f"]}), tmp_path / "text" / "a.parquet")
    lines = [
        b'{"text": "good"}',
        b'{"text": 5}',
        b"{broken",
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
        b'{"other": 1}',
        b"[1]",
    ]
    (tmp_path / "text" / "b.jsonl").write_bytes(b"\n".join(lines))
    meta = convert(make_request(seq_len=4, val_fraction=0.0))
    assert sum(meta.documents.values()) == 3
    assert meta.skipped == {"null": 2, "empty": 1, "blank": 1, "invalid_utf8": 3, "wrong_type": 1, "bad_json": 2}
    assert meta.skipped_examples["empty"] == ["c"]
    assert meta.skipped_examples["invalid_utf8"][0] == "e"
    assert meta.skipped_examples["wrong_type"] == ["b.jsonl row 17"]


def corrupt(path, where):
    content = bytearray(path.read_bytes())
    content[where : where + 40] = b"\x00" * 40
    path.write_bytes(content)


@pytest.fixture
def bad_files(tmp_path):
    """One good file, and five that cannot be used."""
    text = tmp_path / "text"
    write_parquet(text / "a-good.parquet", make_texts(100))
    corrupt(write_parquet(text / "b-broken-page.parquet", make_texts(100)), 200)
    whole = write_parquet(text / "c-truncated.parquet", make_texts(100))
    whole.write_bytes(whole.read_bytes()[:-100])
    (text / "d-zero-bytes.parquet").write_bytes(b"")
    write_parquet(text / "e-no-rows.parquet", [])
    packed = gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in make_texts(3000)).encode())
    (text / "f-cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    return text


def test_bad_files_stop_before_the_merge_and_are_all_named(tmp_path, make_request, bad_files):
    with pytest.raises(InputError) as caught:
        convert(make_request())
    for path in sorted(bad_files.iterdir())[1:]:
        assert path.name in str(caught.value)
    assert "a-good" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "out.partial" / "units").iterdir())  # what was done is kept


def test_skip_bad_files_goes_on_and_says_what_was_left_out(tmp_path, make_request, bad_files):
    with pytest.raises(InputError):
        convert(make_request())
    meta = convert(make_request(skip_bad_files=True))
    assert set(meta.left_out) == {path.name for path in bad_files.iterdir()} - {"a-good.parquet"}
    assert sum(meta.documents.values()) == 100


def test_a_mended_file_gives_the_bytes_of_a_clean_run(tmp_path, make_request):
    for i in range(3):
        write_parquet(tmp_path / "text" / f"{i}.parquet", make_texts(60, seed=i))
    convert(make_request(out=tmp_path / "clean"))
    whole = (tmp_path / "text" / "1.parquet").read_bytes()
    (tmp_path / "text" / "1.parquet").write_bytes(whole[:-50])
    with pytest.raises(InputError, match=r"1\.parquet"):
        convert(make_request())
    (tmp_path / "text" / "1.parquet").write_bytes(whole)
    convert(make_request())
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "clean")


def test_missing_text_column_names_the_columns(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", ["x"], body=["y"])
    with pytest.raises(InputError, match=r"no column 'content'; there are text, id, body"):
        convert(make_request(text_column="content"))
    (tmp_path / "text" / "a.parquet").unlink()
    (tmp_path / "text" / "a.jsonl").write_text('{"body": "x", "title": "y"}\n')
    with pytest.raises(InputError, match=r"no column 'text'; there are body, title"):
        convert(make_request())
    assert not list(tmp_path.glob("out*"))


def test_text_column_of_another_type_is_refused(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", ["x"], count=[1])
    with pytest.raises(InputError, match="column 'count' is int64, not text"):
        convert(make_request(text_column="count"))


@pytest.mark.parametrize("texts", [["", "  ", None]])
def test_dataset_without_documents_is_refused_and_its_units_are_kept(tmp_path, make_request, texts):
    write_parquet(tmp_path / "text" / "a.parquet", texts)
    with pytest.raises(InputError, match=r"no documents in it \(rows skipped: .*1 empty"):
        convert(make_request())
    assert [path.name for path in tmp_path.glob("out*")] == ["out.partial"]


def test_empty_and_missing_folders_are_refused(tmp_path, make_request):
    with pytest.raises(InputError, match="no such file or folder"):
        convert(make_request())
    (tmp_path / "text").mkdir()
    with pytest.raises(InputError, match=r"no file that can be read \(parquet, jsonl"):
        convert(make_request())


def test_less_text_than_a_block_is_refused(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", ["short"])
    with pytest.raises(InputError, match=r"\d+ tokens are less than one block of --seq-len 4096"):
        convert(make_request(seq_len=4096))


@pytest.mark.parametrize("bad", [b"", b"PAR1 no table PAR1"])
def test_a_file_that_was_removed_after_the_start_can_be_done_without(tmp_path, make_request, bad):
    """The advice was to delete it, and the same command was then refused for it."""
    for name in "abc":
        write_parquet(tmp_path / "text" / f"{name}.parquet", make_texts(60, seed=ord(name)))
    removed = tmp_path / "text" / "b.parquet"
    removed.write_bytes(bad)
    convert(make_request(out=tmp_path / "skipped", skip_bad_files=True))
    with pytest.raises(InputError, match=r"b\.parquet") as caught:
        convert(make_request())
    assert "delete" not in str(caught.value) and "--skip-bad-files" in str(caught.value)
    removed.unlink()
    with pytest.raises(InputError, match=r"not there now\n.*an empty file in its place.*--skip-bad-files"):
        convert(make_request())
    removed.touch()
    meta = convert(make_request(skip_bad_files=True))
    assert list(meta.left_out) == ["b.parquet"]
    there, expected = (folder_bytes(tmp_path / name) for name in ("out", "skipped"))
    assert {name: there[name] for name in there if name != "meta.json"} == {
        name: expected[name] for name in expected if name != "meta.json"
    }


def write_arrow(path, kind):
    table = pa.table({"text": pa.array([], pa.string())})
    with kind(str(path), table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("many", [1, 1 << 30], ids=["together", "alone"])
def test_files_without_rows_are_named_whatever_their_kind(tmp_path, make_request, monkeypatch, many):
    """Only parquet and JSON were: of the others came no document, and no word."""
    monkeypatch.setattr("moe.data.write.items.MANY", many)
    text = tmp_path / "text"
    write_parquet(text / "a.parquet", make_texts(60))
    (text / "b.csv").write_text("text,id\n")
    (text / "c.tsv.gz").write_bytes(gzip.compress(b"id\ttext\n\n"))
    write_arrow(text / "d.arrow", pa.ipc.new_file)
    write_arrow(text / "e.feather", pa.ipc.new_stream)
    (text / "f.txt.gz").write_bytes(gzip.compress(b""))
    (text / "g.txt").write_bytes(b"\xef\xbb\xbf")
    (text / "h.json").write_text("[]")
    (text / "i.jsonl").write_text("\n\n")
    (text / "j.csv").write_text("text,id\n,1\n")  # a row, which is skipped and counted
    names = [path.name for path in sorted(text.iterdir())][1:-1]
    with pytest.raises(InputError) as caught:
        convert(make_request())
    assert [name for name in names if name not in str(caught.value)] == [] and "j.csv" not in str(caught.value)
    meta = convert(make_request(skip_bad_files=True))
    assert sorted(meta.left_out) == names
    assert {meta.left_out[name] for name in names[:6]} == {"the file has no rows; fetch it again"}
