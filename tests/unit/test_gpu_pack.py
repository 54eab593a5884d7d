"""benchmarks/gpu_pack.sh: what it converts."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "texts", "tokenizer"),
    [
        ([], ["HuggingFaceFW/fineweb"], "openai-community/gpt2"),
        (["one.parquet", "a folder"], ["one.parquet", "a folder"], "openai-community/gpt2"),
        (["--tokenizer", "my/gpt2", "x", "y", "z"], ["x", "y", "z"], "my/gpt2"),
    ],
)
def test_several_files_and_folders_are_converted_as_one_dataset(tmp_path, arguments, texts, tokenizer) -> None:
    """In a copy of the repository's layout: the script makes its folder anew. The Python is a stand-in."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks/gpu_pack.sh", tmp_path / "benchmarks")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> calls\n')
    python.chmod(0o755)
    command = ["bash", str(tmp_path / "benchmarks/gpu_pack.sh"), *arguments]
    done = subprocess.run(command, env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[:3] == ["-", tokenizer, ".bench/gpu_pack/gpt2"]
    given = calls.index("--dataset") + 1
    assert calls[given : calls.index("--tokenizer")] == texts
