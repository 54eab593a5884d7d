"""The whole conversion in this process, on small data."""

import errno
import gzip
import json
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from moe.data import load_tokenizer, read_meta, verify_split
from moe.data.text import sources
from moe.data.text.encoders import HARD
from moe.data.text.tokenizer import encode_plain
from moe.data.write import packing
from moe.data.write.convert import convert
from moe.data.write.flags import exit_code
from moe.errors import InputError
from tests.unit.data.conftest import expected_split, folder_bytes, make_texts, read_rows, write_parquet


def test_blocks_equal_a_plain_conversion_with_transformers(tmp_path, make_request, tokenizer_folder):
    units = []
    for i in range(3):
        texts = [*make_texts(120, seed=i), *HARD]
        ids = [f"{i}-{j}" for j in range(len(texts))]
        write_parquet(tmp_path / "text" / f"{i}.parquet", texts, ids=ids)
        kept = [j for j, text in enumerate(texts) if text.strip()]  # blank rows are no documents
        units.append((i << 44, [texts[j] for j in kept], [ids[j] for j in kept]))
    meta = convert(make_request())
    tokenizer = load_tokenizer(str(tokenizer_folder))
    expected = expected_split(tokenizer, units, seq_len=32, threshold=int(0.05 * 2**64), seed=17)
    for split, rows in expected.items():
        assert len(rows) > 5
        assert (read_rows(tmp_path / "out" / split) == rows).all()
        assert meta.samples[split] == len(rows)
        assert verify_split(tmp_path / "out" / split, full=True) == []


def test_documents_decode_to_the_texts_with_eos_only_between_them(tmp_path, make_request, tokenizer_folder):
    texts = [f"{i} <|endoftext|> {text}" for i, text in enumerate(make_texts(50))]
    write_parquet(tmp_path / "text" / "a.parquet", texts)
    meta = convert(make_request(val_fraction=0.0))
    tokenizer = load_tokenizer(str(tokenizer_folder))
    stream = read_rows(tmp_path / "out" / "train").reshape(-1)
    documents = np.split(stream, np.flatnonzero(stream == meta.eos_id) + 1)[:-1]
    decoded = [tokenizer.decode(document[:-1]) for document in documents]
    assert len(decoded) >= 48  # the last block is not full
    assert set(decoded) <= set(texts) and len(set(decoded)) == len(decoded)


@pytest.mark.parametrize("encoder", ["gigatoken", "fastokens", "transformers"])
def test_every_encoder_writes_the_same_bytes(tmp_path, make_request, encoder):
    if encoder != "transformers":
        pytest.importorskip(encoder)
    write_parquet(tmp_path / "text" / "a.parquet", [*make_texts(200), *HARD])
    convert(make_request(out=tmp_path / "plain", encoder="transformers"))
    convert(make_request(encoder=encoder))
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["encoder"] == encoder
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "plain")


def test_workers_units_and_shards_of_a_run_leave_no_trace(tmp_path, make_request, monkeypatch):
    monkeypatch.setattr(sources, "UNIT_BYTES", 4000)
    for i in range(2):
        write_parquet(tmp_path / "text" / f"{i}.parquet", make_texts(150, seed=i), rows_per_group=20)
    lines = "".join(json.dumps({"text": text, "id": f"j{i}"}) + "\n" for i, text in enumerate(make_texts(100, seed=5)))
    (tmp_path / "text" / "c.jsonl").write_text(lines)
    one = convert(make_request(out=tmp_path / "one"))
    assert sum(one.documents.values()) == 400
    for workers in (2, 5):
        convert(make_request(out=tmp_path / f"w{workers}", workers=workers))
        assert folder_bytes(tmp_path / f"w{workers}") == folder_bytes(tmp_path / "one")
    for index in (2, 0, 1):
        assert convert(make_request(shard_index=index, num_shards=3)) is None
        assert not (tmp_path / "out").exists()
    convert(make_request(merge_only=True))
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "one")


def test_merge_of_unfinished_shards_is_refused(tmp_path, make_request):
    for i in range(3):
        write_parquet(tmp_path / "text" / f"{i}.parquet", make_texts(50, seed=i))
    convert(make_request(shard_index=0, num_shards=2))
    with pytest.raises(InputError, match=r"1 of 3 units are not done.*1\.parquet"):
        convert(make_request(merge_only=True))
    convert(make_request())  # finishes here
    assert (tmp_path / "out" / "meta.json").exists()


def test_shuffle_windows_bound_memory_and_keep_every_document(tmp_path, make_request, monkeypatch):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(300))
    whole = convert(make_request(out=tmp_path / "whole", val_fraction=0.0))
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 500)
    windows = convert(make_request(val_fraction=0.0))
    assert windows.tokens == whole.tokens and windows.documents == whole.documents
    one, other = read_rows(tmp_path / "out" / "train"), read_rows(tmp_path / "whole" / "train")
    assert (one != other).any()
    assert abs(len(one) - len(other)) == 0


def test_other_seed_shuffles_and_splits_otherwise(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(200))
    convert(make_request())
    convert(make_request(out=tmp_path / "other", seed=18))
    assert (
        folder_bytes(tmp_path / "out")["train/shard.00000.mds"]
        != folder_bytes(tmp_path / "other")["train/shard.00000.mds"]
    )


@pytest.mark.parametrize("limit", [1, 37, 150, 151, 290])
def test_max_documents_is_exact_and_takes_files_in_order(tmp_path, make_request, limit):
    for i in range(2):
        write_parquet(
            tmp_path / "text" / f"{i}.parquet", [f"{i} {text} and then some more" for text in make_texts(150, seed=i)]
        )
    meta = convert(make_request(max_documents=limit, val_fraction=0.0, seq_len=4))
    assert sum(meta.documents.values()) == limit
    first = convert(make_request(out=tmp_path / "w2", workers=2, max_documents=limit, val_fraction=0.0, seq_len=4))
    assert first == meta
    assert folder_bytes(tmp_path / "w2") == folder_bytes(tmp_path / "out")


@pytest.mark.parametrize("limit", [100, 5000, 9000])
def test_max_tokens_is_the_most_whole_documents_within(tmp_path, make_request, tokenizer_folder, limit):
    everything = []
    for i in range(2):
        texts = make_texts(150, seed=i)
        everything += [text for text in texts if text.strip()]
        write_parquet(tmp_path / "text" / f"{i}.parquet", texts)
    lengths = [len(row) + 1 for row in encode_plain(load_tokenizer(str(tokenizer_folder)), everything)]
    fitting = int(np.searchsorted(np.cumsum(lengths), limit, side="right"))
    meta = convert(make_request(max_tokens=limit, val_fraction=0.0))
    assert sum(meta.documents.values()) == fitting
    assert sum(meta.tokens.values()) == sum(lengths[:fitting])


def test_every_kind_of_file_gives_its_documents(tmp_path, make_request, tokenizer_folder):
    text = tmp_path / "text"
    write_parquet(text / "a.parquet", ["parquet one", "parquet two"])
    (text / "b.jsonl").write_text('{"text": "jsonl one"}\n\n{"text": "jsonl two", "id": 7}\n')
    with gzip.open(text / "c.jsonl.gz", "wt") as file:
        file.write('{"text": "gzip one"}\n{"text": "gzip two"}')
    (text / "d.txt").write_text("a text file\nwith two lines\n")
    (text / "notes.md").write_text("not read")
    meta = convert(make_request(seq_len=4, val_fraction=0.0))
    stream = read_rows(tmp_path / "out" / "train").reshape(-1)
    tokenizer = load_tokenizer(str(tokenizer_folder))
    decoded = tokenizer.decode(stream)
    assert sum(meta.documents.values()) == 7
    for piece in ("parquet one", "jsonl two", "gzip one"):
        assert piece in decoded


def test_bad_rows_are_counted_by_reason_and_named(tmp_path, make_request):
    import pyarrow as pa
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


def test_other_text_column_is_used(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", ["x"] * 40, body=[f"the body of {i}" for i in range(40)])
    assert sum(convert(make_request(text_column="body")).documents.values()) == 40


@pytest.mark.parametrize("texts", [["", "  ", None]])
def test_dataset_without_documents_is_refused_and_leaves_nothing(tmp_path, make_request, texts):
    write_parquet(tmp_path / "text" / "a.parquet", texts)
    with pytest.raises(InputError, match=r"no documents in it \(rows skipped: .*1 empty"):
        convert(make_request())
    assert not list(tmp_path.glob("out*"))


def test_empty_and_missing_folders_are_refused(tmp_path, make_request):
    with pytest.raises(InputError, match="no such file or folder"):
        convert(make_request())
    (tmp_path / "text").mkdir()
    with pytest.raises(InputError, match=r"no parquet, jsonl, jsonl\.gz or txt file"):
        convert(make_request())


def test_less_text_than_a_block_is_refused(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", ["short"])
    with pytest.raises(InputError, match=r"\d+ tokens are less than one block of --seq-len 4096"):
        convert(make_request(seq_len=4096))


def test_small_dataset_still_gets_a_val_block(tmp_path, make_request, capsys):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    meta = convert(make_request(val_fraction=0.0001))
    assert meta.samples["val"] >= 1 and meta.samples["train"] >= 1
    assert meta.val_fraction > 0.0001
    assert "using" in capsys.readouterr().out
    again = convert(make_request(out=tmp_path / "again", workers=2, val_fraction=0.0001))
    assert again == meta
    assert folder_bytes(tmp_path / "again") == folder_bytes(tmp_path / "out")


def test_one_document_makes_no_val_and_says_so(tmp_path, make_request, capsys):
    write_parquet(tmp_path / "text" / "a.parquet", ["one two three four five six seven " * 20])
    meta = convert(make_request())
    assert meta.samples["val"] == 0 and meta.samples["train"] >= 1
    assert "train without eval_data" in capsys.readouterr().out


def test_changed_flag_is_refused_with_both_values(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    (tmp_path / "text" / "b.parquet").write_bytes(b"broken")
    with pytest.raises(InputError):
        convert(make_request())
    with pytest.raises(InputError, match=r"seq_len: 32 then, 64 now"):
        convert(make_request(seq_len=64))
    with pytest.raises(InputError, match=r"seed: 17 then, 18 now"):
        convert(make_request(seed=18))
    convert(make_request(seed=18, overwrite=True, skip_bad_files=True))
    assert read_meta(tmp_path / "out").seed == 18


def test_changed_source_and_tokenizer_are_refused_on_resume(tmp_path, make_request, tokenizer_folder):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    (tmp_path / "text" / "b.parquet").write_bytes(b"broken")
    with pytest.raises(InputError):
        convert(make_request())
    other = tmp_path / "other-tokenizer"
    shutil.copytree(tokenizer_folder, other)
    spec = json.loads((other / "tokenizer.json").read_text())
    spec["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match=r"tokenizer: \w{64} then, \w{64} now"):
        convert(make_request(tokenizer=str(other)))
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(61))
    with pytest.raises(InputError, match=r"a\.parquet: version \d+ then, \d+ now"):
        convert(make_request())
    (tmp_path / "text" / "b.parquet").unlink()
    with pytest.raises(InputError, match=r"b\.parquet: there then, not there now"):
        convert(make_request())


def test_complete_output_is_left_alone_and_never_harmed(tmp_path, make_request, capsys):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    convert(make_request())
    before = folder_bytes(tmp_path / "out")
    assert convert(make_request()) == read_meta(tmp_path / "out")
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"seed: 17 then, 5 now"):
        convert(make_request(seed=5))
    write_parquet(tmp_path / "text" / "a.parquet", ["", ""])
    with pytest.raises(InputError, match=r"a\.parquet: \d+ then, \d+ now"):
        convert(make_request())
    with pytest.raises(InputError, match="no documents"):
        convert(make_request(overwrite=True))
    assert folder_bytes(tmp_path / "out") == before


def test_foreign_folder_is_never_replaced(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds something else"):
        convert(make_request(overwrite=True))
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_second_conversion_into_the_same_folder_is_refused_while_one_runs(tmp_path, make_request):
    import fcntl

    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    (tmp_path / "out.partial").mkdir()
    with open(tmp_path / "out.partial" / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another conversion is at work"):
            convert(make_request())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 1}, "--seq-len 1"),
        ({"seq_len": 1 << 26}, "--seq-len 67108864"),
        ({"val_fraction": 1.0}, "--val-fraction 1.0"),
        ({"workers": 0}, "--workers 0"),
        ({"max_documents": 0}, "--max-documents 0"),
        ({"shard_index": 3, "num_shards": 3}, "--shard-index 3 --num-shards 3"),
        ({"shard_index": 1}, "--shard-index 1 --num-shards None"),
        ({"revision": "main"}, "--revision main"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, make_request, changes, message):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    with pytest.raises(InputError, match=message):
        convert(make_request(**changes))
    assert not list(tmp_path.glob("out*"))


def test_limit_that_falls_elsewhere_once_a_file_is_mended_gives_the_bytes_of_a_clean_run(tmp_path, make_request):
    for i, count in enumerate((20, 100, 100)):
        write_parquet(tmp_path / "text" / f"{i}.parquet", make_texts(count, seed=i))
    convert(make_request(out=tmp_path / "clean", max_documents=150))
    whole = (tmp_path / "text" / "0.parquet").read_bytes()
    (tmp_path / "text" / "0.parquet").write_bytes(whole[:-50])
    with pytest.raises(InputError, match=r"0\.parquet"):
        convert(make_request(max_documents=150))
    (tmp_path / "text" / "0.parquet").write_bytes(whole)
    convert(make_request(max_documents=150))
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "clean")


@pytest.mark.parametrize("named", [True, False], ids=["named", "a write, which names no file"])
def test_full_disk_is_told_with_the_path_and_what_is_free_and_code_2(tmp_path, capsys, monkeypatch, named):
    # this process may need transformers' models
    monkeypatch.setattr("moe.data.text.tokenizer.spare_torch", lambda: None)

    def fail():
        raise OSError(errno.ENOSPC, "No space left on device", *([str(out)] if named else []))

    out = tmp_path / "not" / "there" / "out"
    usage = SimpleNamespace(free=12_345)
    monkeypatch.setattr(
        "moe.data.write.flags.shutil", SimpleNamespace(disk_usage=lambda path: usage if path == tmp_path else 1 / 0)
    )

    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert exit_code(fail, out) == 2
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert f"error: {out}: No space left on device (12,345 bytes free); mend that" in capsys.readouterr().err
