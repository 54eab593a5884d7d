"""The whole conversion in this process, on small data: what it writes."""

import gzip
import json

import numpy as np
import pytest

from moe.common.errors import InputError
from moe.data import load_tokenizer, verify_split
from moe.data.text import planning
from moe.data.text.encoders import HARD
from moe.data.write import packing
from moe.data.write.convert import convert
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


def test_other_text_column_is_used(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", ["x"] * 40, body=[f"the body of {i}" for i in range(40)])
    assert sum(convert(make_request(text_column="body")).documents.values()) == 40


def test_workers_units_and_shards_of_a_run_leave_no_trace(tmp_path, make_request, monkeypatch):
    monkeypatch.setattr(planning, "UNIT_BYTES", 4000)
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
