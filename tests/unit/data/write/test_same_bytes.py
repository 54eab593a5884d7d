"""The bytes of a conversion, held as they were on 2026-11-26: shards, unit names and splits of plain input stay so.

The tokenizer is one token a byte, written here, so that no library's training decides.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from pathlib import Path

import pytest

from moe.data.text.planning import plan_units
from moe.data.text.sources import resolve
from moe.data.write.convert import convert
from tests.unit.data.conftest import write_parquet

WORDS = ["river", "stone", "über", "lantern", "walks", "sees", "quiet", "the", "of", "naïve", "7", "and", "—", "森"]


def write_byte_tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|endoftext|>": 0, **{c: i + 1 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


def texts_of(seed: int, count: int) -> list[str]:
    drawn = random.Random(seed)
    return [f"{seed}/{i} " + " ".join(drawn.choice(WORDS) for _ in range(drawn.randint(3, 40))) for i in range(count)]


def jsonl(texts: list[str], *, ids: bool) -> str:
    rows = [{"text": text, **({"id": f"r{i}"} if ids else {})} for i, text in enumerate(texts)]
    return "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows))


def write_inputs(folder: Path) -> None:
    (folder / "lines").mkdir(parents=True)
    (folder / "lines" / "a.jsonl").write_text(jsonl(texts_of(1, 120), ids=True), encoding="utf-8")
    (folder / "lines" / "b.json").write_text(jsonl(texts_of(2, 60), ids=False), encoding="utf-8")
    with open(folder / "lines" / "c.jsonl.gz", "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        file.write(jsonl(texts_of(3, 70), ids=True).encode())
    write_parquet(folder / "tables" / "train-0.parquet", texts_of(4, 90), rows_per_group=20)
    write_parquet(folder / "tables" / "train-1.parquet", texts_of(5, 80), ids=list(range(80)))
    write_parquet(folder / "tables" / "test-0.parquet", texts_of(6, 30))
    (folder / "books" / "deep").mkdir(parents=True)
    for name, seed in (("one.txt", 7), ("deep/two.txt", 8)):
        (folder / "books" / name).write_text("\n\n".join(texts_of(seed, 250)) + "\n", encoding="utf-8")


CASES: dict[str, tuple[tuple[str, ...], dict]] = {
    "lines": (("lines",), {}),
    "tables": (("tables",), {}),
    "test split": (("tables",), {"split": "test", "val_fraction": 0.2}),
    "books": (("books",), {"seq_len": 64}),
    "all": (("books", "lines", "tables"), {"seed": 3}),
    "documents": (("lines",), {"max_documents": 150}),
    "tokens": (("tables",), {"max_tokens": 9000}),
    "one file": (("lines/a.jsonl",), {"val_fraction": 0.0}),
}
RECORDED = {  # of the names of its units; of its counts and shards
    "lines": ("85e7e6f03992e627", "85b33aa929a03a72"),
    "tables": ("b9116b64d8b2a947", "2d969fe199f90563"),
    "test split": ("a01d57b23193966f", "3dcefc2c0d5665b9"),
    "books": ("0f0f166d776e2ec7", "a8a30452d8e401a0"),
    "all": ("bd890b84efe5d7c5", "c88d2ba4a6e2c2f7"),
    "documents": ("85e7e6f03992e627", "7b9760e88f4fa55b"),
    "tokens": ("b9116b64d8b2a947", "aba86716889be2a5"),
    "one file": ("d06dcf70b3f44148", "2c62212df6319955"),
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_unit_names_and_splits_are_those_recorded(tmp_path, make_request, case):
    write_inputs(tmp_path)
    names, changes = CASES[case]
    dataset = tuple(str(tmp_path / name) for name in names)
    tokenizer = str(write_byte_tokenizer(tmp_path / "bytes"))
    request = make_request(dataset=dataset, tokenizer=tokenizer, **changes)
    source = resolve(dataset=dataset, config=None, split=request.split, revision=None)
    units = " ".join(f"{unit.name}:{unit.file.name}:{unit.end}" for unit in plan_units(source.files, "text")[0])
    meta = convert(request)
    assert meta is not None
    digest = hashlib.sha256(json.dumps([meta.documents, meta.tokens, meta.samples, meta.text_bytes]).encode())
    for path in sorted((tmp_path / "out").glob("*/shard.*.mds")):
        digest.update(f"{path.parent.name}/{path.name}".encode() + hashlib.sha256(path.read_bytes()).digest())
    assert (hashlib.sha256(units.encode()).hexdigest()[:16], digest.hexdigest()[:16]) == RECORDED[case]
