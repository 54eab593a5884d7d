import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

from moe.common.errors import InputError
from moe.common.extras import install_command
from moe.data import load_tokenizer
from moe.data.text import encoders
from moe.data.text.encoders import HARD, Transformers, build_encoder, choose_encoder, first_difference
from moe.data.text.plain_ids import encode_plain, plain_json
from tests.unit.data.conftest import make_texts


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return load_tokenizer(str(tokenizer_folder))


@pytest.mark.parametrize("name", ["gigatoken", "fastokens", "transformers"])
def test_ids_are_transformers_on_hard_strings(tokenizer, name):
    if name != "transformers":
        pytest.importorskip(name)
    encoder = build_encoder(name, spec_json=plain_json(tokenizer), tokenizer_name="")
    texts = [*HARD, "", *make_texts(50)]
    assert first_difference(encoder, texts, encode_plain(tokenizer, texts)) is None


@pytest.mark.parametrize("name", ["gigatoken", "fastokens", "transformers"])
def test_slices_of_a_column_are_encoded_as_they_stand(tokenizer, name):
    if name != "transformers":
        pytest.importorskip(name)
    encoder = build_encoder(name, spec_json=plain_json(tokenizer), tokenizer_name="")
    column = pa.array(make_texts(30), pa.large_string())
    ids, offsets = encoder.encode(column.slice(7, 5))
    want = encode_plain(tokenizer, column.to_pylist()[7:12])
    base = int(offsets[0])
    assert [ids[a - base : b - base].tolist() for a, b in itertools.pairwise(offsets)] == want


def test_literal_eos_text_never_becomes_the_eos_id(tokenizer):
    for name in ("gigatoken", "fastokens", "transformers"):
        try:
            encoder = build_encoder(name, spec_json=plain_json(tokenizer), tokenizer_name="")
        except ImportError:
            continue
        ids, _ = encoder.encode(pa.array(["<|endoftext|>", "a <|endoftext|>b"], pa.large_string()))
        assert tokenizer.eos_token_id not in ids.tolist()
        assert tokenizer.decode(ids) == "<|endoftext|>a <|endoftext|>b"


def cut_in_small_pieces(monkeypatch):
    monkeypatch.setattr(encoders, "CUT_CHARS", 40)
    text = " ".join(make_texts(30)) + " the quick brown fox" * 20
    assert "".join(encoders.cut_text(text)) == text
    assert len(list(encoders.cut_text(text))) > 20
    return [text, *HARD, *make_texts(20)]


def test_long_text_is_cut_before_words_without_changing_an_id(tokenizer, monkeypatch):
    texts = cut_in_small_pieces(monkeypatch)
    encoder = Transformers(plain_json(tokenizer), "")
    assert encoder._may_cut
    assert first_difference(encoder, texts, encode_plain(tokenizer, texts)) is None


def test_long_real_text_is_cut_without_changing_an_id(shared_data, monkeypatch):
    monkeypatch.setattr(encoders, "CUT_CHARS", 200)
    real = load_tokenizer(str(shared_data / "gpt2"))
    texts = pq.read_table(shared_data / "fineweb/sample/10BT/000_00000.parquet")["text"].to_pylist()[:300]
    assert first_difference(Transformers(plain_json(real), ""), texts, encode_plain(real, texts)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Prepend", "prepend": "x"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
    ],
    ids=["text is put in front", "words are joined"],
)
def test_tokenizer_that_a_cut_would_change_gets_its_texts_whole(tokenizer, monkeypatch, change):
    spec = {**json.loads(plain_json(tokenizer)), **change}
    if "normalizer" not in change:  # a token that reaches over a space
        spec["model"]["vocab"]["eĠ"] = len(spec["model"]["vocab"])
        spec["model"]["merges"].insert(0, ["e", "Ġ"])
    texts = cut_in_small_pieces(monkeypatch)
    plain = tokenizers.Tokenizer.from_str(json.dumps(spec))
    encoder = Transformers(json.dumps(spec), "")
    assert not encoder._may_cut
    assert first_difference(encoder, texts, [plain.encode(text).ids for text in texts]) is None


def test_tokenizer_without_a_fast_backend_is_encoded_by_transformers(tokenizer_folder, tokenizer):
    encoder = Transformers(None, str(tokenizer_folder))
    texts = make_texts(20)
    assert first_difference(encoder, texts, encode_plain(tokenizer, texts)) is None


def choose(tokenizer, wanted, said):
    return choose_encoder(
        wanted,
        tokenizer=tokenizer,
        tokenizer_name="",
        spec_json=plain_json(tokenizer),
        documents=make_texts(20),
        say=said.append,
    )


def test_encoder_with_one_differing_id_is_dropped_and_named(tokenizer, monkeypatch):
    class Wrong:
        name = "gigatoken"

        def __init__(self, spec_json):
            self._right = Transformers(spec_json, "")

        def encode(self, texts):
            ids, offsets = self._right.encode(texts)
            ids = np.array(ids)
            ids[-1] ^= 1
            return ids, offsets

    monkeypatch.setattr(encoders, "Gigatoken", Wrong)
    said = []
    assert choose(tokenizer, "gigatoken", said) == "transformers"
    assert "gigatoken is not used, it differs from transformers" in said[0]


def test_encoder_that_cannot_read_the_tokenizer_gives_way(tokenizer, monkeypatch):
    def broken(spec_json):
        raise RuntimeError("unknown pre-tokenizer")

    monkeypatch.setattr(encoders, "Gigatoken", broken)
    monkeypatch.setattr(encoders, "Fastokens", broken)
    said = []
    assert choose(tokenizer, "auto", said) == "transformers"
    assert "gigatoken cannot read this tokenizer (unknown pre-tokenizer)" in said[0]


def test_missing_package_is_passed_over_in_auto_and_named_when_asked_for(tokenizer, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gigatoken", None)
    monkeypatch.setitem(sys.modules, "fastokens", None)
    said = []
    assert choose(tokenizer, "auto", said) == "transformers"
    assert f"{install_command('convert')} brings the fast ones" in said[-1]
    with pytest.raises(InputError, match=r"--encoder gigatoken.*; pip install "):
        choose(tokenizer, "gigatoken", said)
