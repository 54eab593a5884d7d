"""What is counted of a dataset: ids that occur again, and what the tokenizer cannot write, wherever it stands."""

import itertools
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from moe.data.meta import read_meta, warnings_of
from moe.data.text.spread import PIECE_BYTES, SAMPLE_BYTES, Spread
from moe.data.write import doubled
from moe.data.write.convert import convert
from moe.data.write.report import summary
from tests.unit.data.conftest import make_texts, write_parquet
from tests.unit.data.write.test_convert_text import make_tokenizer


def test_ids_that_occur_in_several_files_are_counted(tmp_path, make_request):
    """A11: two dumps with the same documents; each file by itself has every id once."""
    for name in ("one", "two", "three"):
        write_parquet(tmp_path / "text" / f"{name}.parquet", make_texts(70), ids=[f"n{i}" for i in range(70)])
    meta = convert(make_request())
    assert meta.id_column == "id" and meta.duplicate_ids == 140 and not meta.duplicates_estimated
    assert any("140 with the id of another" in line for line in summary(meta, tmp_path / "out"))
    assert any("66.7% of the documents share their id with another (140 of 210)" in line for line in warnings_of(meta))


@pytest.mark.parametrize("together", [True, False])
def test_documents_without_an_id_have_none_of_another(tmp_path, make_request, monkeypatch, together):
    """A11: in a unit with ids, others were counted by their text, as if that were one; so was an empty id."""
    if together:
        monkeypatch.setattr("moe.data.write.items.MANY", 1)
    texts = make_texts(60)
    ids = [f"n{i}" if i % 3 else None for i in range(60)]
    write_parquet(tmp_path / "text" / "one.parquet", ["the same text"] * 20 + texts[20:], ids=ids)
    ids = [f"n{i}" if i % 2 else "" for i in range(60)]
    write_parquet(tmp_path / "text" / "two.parquet", ["the same text"] * 20 + texts[20:], ids=ids)
    meta = convert(make_request())
    documents = sum(meta.documents.values())
    both = sum(1 for i in range(60) if i % 3 and i % 2 and (i < 20 or texts[i].strip()))
    assert meta.id_column == "id" and documents > 100 and meta.duplicate_ids == both


def test_many_ids_are_counted_by_a_sample_and_told_as_an_estimate(tmp_path, make_request, monkeypatch):
    """A11: constant memory, whatever lies between the two of a pair."""
    monkeypatch.setattr(doubled, "MOST", 4000)
    drawn = np.random.default_rng(0).integers(0, 2**64, 100_000, np.uint64)
    found = doubled.Doubled()
    for part in [*np.split(drawn, 10), *np.split(drawn[:50_000], 5)]:
        found.add(part)
        assert len(found._values) <= 4000
    assert found.is_estimate and abs(found.count - 50_000) < 5_000
    monkeypatch.setattr(doubled, "MOST", 50)
    for name in ("one", "two"):
        write_parquet(tmp_path / "text" / f"{name}.parquet", make_texts(70), ids=[f"n{i}" for i in range(70)])
    meta = convert(make_request())
    assert meta.duplicates_estimated and 20 < meta.duplicate_ids < 140
    assert any("share their id with another, by estimate" in line for line in warnings_of(meta))
    assert any(f"about {meta.duplicate_ids:,} with the id" in line for line in summary(meta, tmp_path / "out"))


def text_of(spread: Spread) -> str:
    return "\n".join(spread.pieces())


@pytest.mark.parametrize("documents", [1, 40, 30_000])
def test_a_sample_is_of_all_of_a_text_and_bounded(documents):
    """A12: its end and its middle have the same chance as its front, be it one document or many small ones."""
    words = [f"w{i:06}" for i in range(150_000)]
    size = len(words) // documents
    texts = pa.array([" ".join(words[i * size : (i + 1) * size]) for i in range(documents)], pa.large_string())
    one, two = Spread(1), Spread(1)
    one.add(texts)
    for start in range(0, documents, 7 if documents < 100 else 1000):
        two.add(texts.slice(start, 7 if documents < 100 else 1000))
    assert one.pieces() == two.pieces(), "the batches do not matter"
    found = np.array([int(word[1:]) for word in text_of(one).split()])
    assert set(text_of(one).split()) <= set(words), "no half words"
    assert 0.8 * SAMPLE_BYTES < len(text_of(one).encode()) < 1.2 * SAMPLE_BYTES + PIECE_BYTES
    shares = np.histogram(found, 5, (0, len(words)))[0] / len(found)
    assert shares.min() > 0.05 and shares.max() < 0.4
    other = Spread(2)
    other.add(texts)
    assert other.pieces() != one.pieces()


def test_a_text_that_fits_is_the_sample(tmp_path):
    """A12: nothing of a small text is left out, and no character is cut in two or lost between pieces."""
    texts = ["слово " * 1000, "x", "", "你好" * 3000, "\ue000" * 341 + "ab" + "é" * 999]
    spread = Spread(0)
    spread.add(pa.array(texts, pa.large_string()))
    assert len(spread.pieces()) > 20
    assert Counter(itertools.chain(*spread.pieces())) == Counter(itertools.chain(*texts))


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_what_is_lost_behind_the_front_of_a_unit_is_seen(tmp_path, make_request, name):
    """A12: 100 KB that can be written, then as much that cannot."""
    (tmp_path / "text").mkdir()
    texts = ["plain words\n\n" * 8] * 1000 + ["слово и дело\n\n" * 8] * 1000
    lines = [json.dumps({"text": text}) for text in texts] if name == "a.jsonl" else texts
    (tmp_path / "text" / name).write_text("\n".join(lines))
    meta = convert(make_request(tokenizer=make_tokenizer(tmp_path / "t", unknown=False), val_fraction=0.0))
    assert 0.3 < meta.lost_characters / meta.sampled_characters < 0.7
    assert any("characters are lost in a sample" in line for line in warnings_of(read_meta(tmp_path / "out")))
