"""How text becomes documents: separators, ids, and what a tokenizer cannot write is counted."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moe.data.meta import read_meta, warnings_of
from moe.data.text import ids as ids_module
from moe.data.text.losses import lossy
from moe.data.text.plain_text import PEEK_CHARS, TXT_CHARS
from moe.data.text.tokenizer import load_tokenizer
from moe.data.write.convert import convert
from moe.data.write.report import summary
from tests.unit.data.conftest import folder_bytes, make_texts, read_rows, write_parquet
from tests.unit.data.text.test_kinds import documents

EOS = "<|endoftext|>"


def test_a_line_of_eos_ends_a_document_of_a_text_file(tmp_path, make_request):
    """A10: TinyStories' way; told in the summary."""
    (tmp_path / "text").mkdir()
    stories = [f"story {i}\n\nwith two parts" for i in range(300)]
    (tmp_path / "text" / "a.txt").write_text(f"\n{EOS}\n".join(stories))
    meta = convert(make_request())
    assert sum(meta.documents.values()) == 300 and meta.separators == 299
    assert any("299 lines of .txt files that are EOS" in line for line in summary(meta, tmp_path / "out"))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_a_line_that_is_exactly_eos_ends_a_document(tmp_path, end):
    """A10: with either line end; not within a line, and not another tokenizer's."""
    text = end.join([f"one {EOS} inside", "</s>", EOS, EOS, "", EOS, "two", EOS])
    found = [text for text, _ in documents(tmp_path, "a.txt", text.encode(), separator=EOS)]
    assert found == [f"one {EOS} inside{end}</s>{end}", f"two{end}"]  # a blank one is skipped and counted
    assert [text for text, _ in documents(tmp_path, "a.txt", text.encode())] == [text]


def test_a_document_between_separators_is_whole_however_long(tmp_path):
    """A10: where the file says where documents end, nothing else does."""
    long = "line\n\n" * TXT_CHARS
    text = f"{long}{EOS}\nshort\n"
    assert [t for t, _ in documents(tmp_path, "a.txt", text.encode(), separator=EOS)] == [long, "short\n"]
    late = "line\n\n" * (PEEK_CHARS // 6 + 10)  # the mark is seen too late: cut as without marks, and the mark is one
    found = [t for t, _ in documents(tmp_path, "a.txt", f"{late}{EOS}\nshort\n".encode(), separator=EOS)]
    assert "".join(found) == late + "short\n" and found[-1] == "short\n" and len(found) > 10


def test_an_id_column_of_few_values_does_not_decide_the_split(tmp_path, make_request, capsys):
    """A11: a label called id sent half of the text to val."""
    texts = make_texts(200)
    write_parquet(tmp_path / "text" / "a.parquet", texts, ids=["left", "right"] * 100)
    meta = convert(make_request(val_fraction=0.2))
    assert meta.id_column is None and meta.duplicate_ids == 0
    assert 0.05 < meta.documents["val"] / 200 < 0.4
    assert "identified by their text: column 'id' has only 2 values in the first 200 rows" in capsys.readouterr().out
    write_parquet(tmp_path / "text" / "a.parquet", texts, ids=[None] * 200)  # no ids at all: the same split
    convert(make_request(val_fraction=0.2, out=tmp_path / "other"))
    assert np.array_equal(read_rows(tmp_path / "out" / "val"), read_rows(tmp_path / "other" / "val"))


@pytest.mark.parametrize(
    "kind",
    [
        pa.string_view(),
        pa.large_string(),
        pa.binary(),
        pa.binary_view(),
        pa.dictionary(pa.int16(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_binary()),
    ],
)
def test_text_and_ids_of_any_arrow_type_give_one_split(tmp_path, make_request, kind):
    """A11: the type of a column does not decide the split."""
    texts = make_texts(120)
    write_parquet(tmp_path / "plain" / "a.parquet", texts)
    convert(make_request(dataset=(str(tmp_path / "plain"),), out=tmp_path / "first", val_fraction=0.3))
    (tmp_path / "text").mkdir()
    table = pq.read_table(tmp_path / "plain" / "a.parquet")
    column = table["id"].combine_chunks()
    text = table["text"].combine_chunks()
    if pa.types.is_dictionary(kind):
        changed = [c.cast(kind.value_type).dictionary_encode().cast(kind) for c in (text, column)]
    else:
        changed = [c.cast(kind) for c in (text, column)]
    schema = pa.schema({"text": kind, "id": kind})
    with pa.ipc.new_stream(str(tmp_path / "text" / "a.arrow"), schema) as writer:
        for start in range(0, 120, 50):
            writer.write(pa.record_batch([c.slice(start, 50) for c in changed], schema=schema))
    meta = convert(make_request(val_fraction=0.3))
    assert meta.id_column == "id" and meta.documents == read_meta(tmp_path / "first").documents
    for split in ("train", "val"):
        assert np.array_equal(read_rows(tmp_path / "out" / split), read_rows(tmp_path / "first" / split))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_an_id_that_cannot_be_written_is_none(tmp_path, make_request, capsys, name):
    """A11: times in a zone that nobody knows: a traceback, "Cannot locate or parse timezone"."""
    (tmp_path / "text").mkdir()
    ids = pa.array(range(60), pa.timestamp("us", "Mars/Base"))
    table = pa.table({"text": make_texts(60), "id": ids})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / "text" / name)
    else:
        with pa.ipc.new_file(str(tmp_path / "text" / name), table.schema) as writer:
            writer.write_table(table)
    meta = convert(make_request())
    assert meta.id_column is None and sum(meta.documents.values()) > 50
    assert "identified by their text (no usable column 'id' in the files" in capsys.readouterr().out


def test_later_duplicates_are_counted_and_the_choice_stands(tmp_path, make_request, monkeypatch):
    """A11: judged on the first rows, never re-decided."""
    monkeypatch.setattr(ids_module, "ID_ROWS", 100)
    names = [f"n{i}" for i in range(100)] + ["same"] * 100
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(200), ids=names, rows_per_group=50)
    meta = convert(make_request(val_fraction=0.2))
    assert meta.id_column == "id" and meta.duplicate_ids == 99
    assert any("49.5% of the documents share their id with another (99 of 200)" in line for line in warnings_of(meta))


def test_a_begun_conversion_keeps_its_choice_though_the_first_file_was_mended(tmp_path, make_request):
    """A11: the choice stands in the plan."""
    for i in range(2):
        write_parquet(
            tmp_path / "text" / f"{i}.parquet", make_texts(60, seed=i), ids=["a", "b"] * 30 if not i else None
        )
    whole = (tmp_path / "text" / "0.parquet").read_bytes()
    (tmp_path / "text" / "0.parquet").write_bytes(whole[:-50])
    with pytest.raises(Exception, match=r"0\.parquet"):
        convert(make_request())
    assert json.loads((tmp_path / "out.partial" / "plan.json").read_text())["request"]["id_column"] == "id"
    (tmp_path / "text" / "0.parquet").write_bytes(whole)
    assert convert(make_request()).id_column == "id"


def make_tokenizer(folder, *, unknown=True, normalizer=None):
    """Words of Latin letters, one by one."""
    vocab = {token: i for i, token in enumerate(["</s>", *(["<unk>"] if unknown else []), *map(chr, range(33, 127))])}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>" if unknown else None))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if normalizer is not None:
        backend.normalizer = normalizer
    names = {"eos_token": "</s>", **({"unk_token": "<unk>"} if unknown else {})}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("unknown", [True, False])
def test_what_a_tokenizer_cannot_write_is_counted_and_warned_of(tmp_path, make_request, capsys, unknown):
    """A12: unknown tokens, or characters that are gone, in summary, meta.json and a warning, before and after."""
    (tmp_path / "text").mkdir()
    rows = [{"text": f"plain {i}" if i % 4 else "слово"} for i in range(200)]
    (tmp_path / "text" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    meta = convert(make_request(tokenizer=make_tokenizer(tmp_path / "t", unknown=unknown), seq_len=16))
    assert meta.unknown_tokens == (250 if unknown else 0)
    assert meta.lost_characters == 250
    assert meta.sampled_characters == sum(len(row["text"].replace(" ", "")) for row in rows)
    out = capsys.readouterr().out
    assert out.index("warning: of the first 200 documents") < out.index("merging")
    warned = [line for line in summary(meta, tmp_path / "out") if line.startswith("warning")]
    assert len(warned) == 1 + unknown and "(250 of " in warned[-1]
    assert read_meta(tmp_path / "out").lost_characters == 250


def test_a_normalizer_that_removes_characters_is_seen(tmp_path, make_request):
    """A12: accents that are stripped are lost, case that is folded is not."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jsonl").write_text(json.dumps({"text": "Été Déjà " * 100}))
    steps = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
    meta = convert(make_request(tokenizer=make_tokenizer(tmp_path / "t", normalizer=steps), val_fraction=0.0))
    assert meta.unknown_tokens == 0
    assert meta.lost_characters == 400 and meta.sampled_characters == 1100  # in NFD: an accent is a character


def test_a_tokenizer_that_can_write_everything_has_nothing_to_count(tmp_path, make_request, tokenizer_folder):
    """A12: free for byte-level tokenizers."""
    assert lossy(load_tokenizer(str(tokenizer_folder))) is None
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(50))
    meta = convert(make_request())
    assert (meta.unknown_tokens, meta.sampled_characters, meta.lost_characters) == (0, 0, 0)
    assert warnings_of(meta) == [] and not any("lost" in line for line in summary(meta, tmp_path / "out"))


def test_check_warns_of_losses(tmp_path, make_request):
    """A12: `moe check` on the converted folder."""
    from types import SimpleNamespace

    from moe.config import TrainData
    from moe.plan.checks.data import _losses

    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jsonl").write_text("\n".join([json.dumps({"text": "слово и word " * 9})] * 20 + ["{"] * 5))
    convert(make_request(tokenizer=make_tokenizer(tmp_path / "t"), seq_len=16))
    inputs = SimpleNamespace(text=None)
    (result,) = _losses(SimpleNamespace(train_data=TrainData(local=str(tmp_path / "out"))), inputs)
    assert result.state == "warn"
    for told in ("20.0% of the rows were skipped (5 of 25)", "tokens are unknown", "characters are lost in a sample"):
        assert told in result.text


def test_meta_of_an_older_version_is_read(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(50))
    convert(make_request())
    path = tmp_path / "out" / "meta.json"
    content = json.loads(path.read_text())
    for name in ("id_column", "duplicate_ids", "separators", "unknown_tokens", "sampled_characters", "lost_characters"):
        del content[name]
    path.write_text(json.dumps(content))
    meta = read_meta(tmp_path / "out")
    assert meta.duplicate_ids is None and warnings_of(meta) == []
    assert any(line.startswith("documents") for line in summary(meta, tmp_path / "out"))


def test_counts_are_the_same_for_any_number_of_workers(tmp_path, make_request):
    (tmp_path / "text").mkdir()
    for name, count in itertools.product("ab", [40]):
        lines = [json.dumps({"text": f"{name} слово {i}", "id": f"{i // 2}"}) for i in range(count)]
        (tmp_path / "text" / f"{name}.jsonl").write_text("\n".join(lines))
    tokenizer = make_tokenizer(tmp_path / "t")
    convert(make_request(tokenizer=tokenizer, seq_len=16))
    convert(make_request(tokenizer=tokenizer, seq_len=16, workers=2, out=tmp_path / "two"))
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "two")


def test_ids_count_where_they_are_though_the_first_file_has_none(tmp_path, make_request):
    """A11: a .txt among parquet files does not change the split of the others."""
    write_parquet(tmp_path / "text" / "b.parquet", make_texts(120))
    (tmp_path / "text" / "a.txt").write_text("a book of one line")
    meta = convert(make_request(val_fraction=0.3))
    assert meta.id_column == "id"
    only = convert(make_request(dataset=(str(tmp_path / "text" / "b.parquet"),), val_fraction=0.3, out=tmp_path / "b"))
    assert 0 <= sum(meta.documents.values()) - sum(only.documents.values()) == 1
    assert abs(meta.documents["val"] - only.documents["val"]) <= 1
