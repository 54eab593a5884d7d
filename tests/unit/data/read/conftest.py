"""Text to train on, cut so fine that little of it has many pieces and windows."""

import gzip
import json

import pytest

from moe.data import open_text
from moe.data.read import lanes
from tests.unit.data.conftest import make_texts, write_parquet


@pytest.fixture
def text_folder(tmp_path):
    """160 documents in parquet, 60 in jsonl, 40 in jsonl.gz, with ids; and bad rows between them."""
    texts = make_texts(260)
    write_parquet(tmp_path / "text" / "a.parquet", [*texts[:160], "", None, "  "], rows_per_group=20)
    lines = [json.dumps({"id": f"l-{i}", "text": text}) for i, text in enumerate(texts[160:])]
    (tmp_path / "text" / "b.jsonl").write_text("\n".join([*lines[:30], "{broken", *lines[30:60]]) + "\n")
    (tmp_path / "text" / "c.jsonl.gz").write_bytes(gzip.compress(("\n".join(lines[60:]) + "\n").encode()))
    return tmp_path / "text"


@pytest.fixture
def plan(text_folder, tokenizer_folder, monkeypatch):
    """`open_text` over `text_folder`, with changes."""
    monkeypatch.setattr(lanes, "WINDOW_TOKENS", 400)
    monkeypatch.setattr(lanes, "LEAST_PIECE", 500)

    def make(dataset=text_folder, **changes):
        values = {
            "dataset": str(dataset),
            "config": None,
            "split": "train",
            "revision": None,
            "text_column": "text",
            "val_fraction": 0.1,
            "val_seed": 17,
            "lanes": 4,
            "tokenizer_name": str(tokenizer_folder),
            "seq_len": 32,
            "seed": 5,
            "say": print,
        }
        return open_text(**{**values, **changes})

    return make
