"""Tokenizer and data of the stages.

    PACK/gpt2/  tokenizer.json ...      PACK/data/  train/ val/ meta.json      of benchmarks/gpu_pack.sh

For a dry run both are made here, small, of made-up text: a byte-level BPE of 400 tokens, sequences of 64.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACK = ROOT / ".bench" / "gpu_pack"
TINY_SEQ_LEN = 64
TEXT = "the model reads a token and writes another one while every expert waits for its share of the work"


def make_tiny_pack(folder: Path) -> Path:
    """Made once; the same every time."""
    if (folder / "data" / "meta.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
        for number in range(600):
            text = " ".join(rng.choice(TEXT.split()) for _ in range(rng.randint(5, 120)))
            file.write(json.dumps({"id": f"doc-{number}", "text": text}) + "\n")
    text, tokenizer, data = (str(folder / name) for name in ("text.jsonl", "gpt2", "data"))
    share = ["--val-fraction", "0.05", "--workers", "1"]
    for script, settings in (
        ("train_tokenizer", ["--vocab-size", "400", "--out", tokenizer]),
        ("fineweb_to_mds", ["--tokenizer", tokenizer, "--seq-len", str(TINY_SEQ_LEN), *share, "--out", data]),
    ):
        command = [sys.executable, str(ROOT / f"convert/{script}.py"), "--dataset", text, *settings]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{script}: {done.stderr}")
    return folder
