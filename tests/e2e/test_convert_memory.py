"""Memory of a worker: bounded, whatever the documents and however many."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data.conftest import WORDS, tokenizer_folder, write_parquet

__all__ = ["tokenizer_folder"]  # a fixture

SCRIPT = """
import json, resource, sys
from pathlib import Path
from moe.data import pool
from moe.data.folders import LocalFolder
from moe.data.sources import local_source, plan_units
from moe.data.unit import Job

if __name__ == "__main__":
    encoder, *paths = sys.argv[1:]
    text, spec, out = map(Path, paths)
    job = Job(seq_len=2048, dtype="uint16", eos_id=0, seed=17, val_threshold=1 << 57, text_column="text",
              max_documents=None, max_tokens=None, encoder=encoder, tokenizer="", spec_json=spec.read_text())
    units, _ = plan_units(local_source([text], dataset="x", config=None, split="train").files, "text")
    counter = pool.new_counter()
    pool.run_units(job, units, LocalFolder(out), workers=2, counter=counter, finished=lambda unit, fault: fault is None)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(json.dumps({"tokens": counter[0], "units": len(units), "peak_mb": peak}))
"""


def long_text(size: int, seed: int) -> str:
    words = np.random.default_rng(seed).choice([*WORDS, "mixture", "expert", "router", "1234", "naïve"], size // 5)
    return " ".join(words)[:size]


def peak(tmp_path: Path, tokenizer: Path, encoder: str, name: str, files: list[list[str]]) -> dict:
    for i, texts in enumerate(files):
        write_parquet(tmp_path / name / f"{i}.parquet", texts, rows_per_group=10)
    spec = json.loads((tokenizer / "tokenizer.json").read_text())
    spec["added_tokens"], spec["post_processor"] = [], None
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    (tmp_path / "run.py").write_text(SCRIPT)
    arguments = [encoder, tmp_path / name, tmp_path / "spec.json", tmp_path / f"{name}-out"]
    command = [sys.executable, str(tmp_path / "run.py"), *map(str, arguments)]
    return json.loads(subprocess.check_output(command, text=True))


@pytest.mark.parametrize("encoder", ["gigatoken", "fastokens"])
def test_worker_stays_below_400_mb_with_2_mb_documents_and_ten_times_the_input(tmp_path, tokenizer_folder, encoder):
    pytest.importorskip(encoder)
    texts = [long_text(2_000_000, seed) for seed in range(5)]
    small = peak(tmp_path, tokenizer_folder, encoder, "small", [texts, texts])
    large = peak(tmp_path, tokenizer_folder, encoder, "large", [texts * 10, texts * 10])
    assert large["tokens"] == 10 * small["tokens"]
    assert small["peak_mb"] <= large["peak_mb"] <= 400


def test_worker_of_transformers_encoder_stays_below_300_mb_before_its_first_shard_is_full(tmp_path, tokenizer_folder):
    texts = [long_text(2_000_000, seed) for seed in range(4)]
    few = peak(tmp_path, tokenizer_folder, "transformers", "few", [texts[:2], texts[2:]])
    assert few["peak_mb"] <= 300
