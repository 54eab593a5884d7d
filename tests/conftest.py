"""What all tests share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text and GPT-2's tokenizer; beside the repository where there is one, or where MOE_SHARED_DATA says."""
    folder = Path(os.environ.get("MOE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "fineweb").is_dir():
        pytest.skip("no sample data (set MOE_SHARED_DATA to a folder with fineweb/ and gpt2/)")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, a converted dataset (`data`) and a configuration (`tiny.yaml`) for it."""
    import subprocess
    import sys

    from tests.tiny import tiny_config, write_config, write_text, write_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    text = write_text(folder / "text.jsonl")
    write_tokenizer(folder / "tokenizer", text)
    command = [sys.executable, str(ROOT / "convert/fineweb_to_mds.py"), "--dataset", str(text)]
    command += ["--tokenizer", str(folder / "tokenizer"), "--seq-len", "32", "--val-fraction", "0.05"]
    command += ["--out", str(folder / "data"), "--workers", "1"]
    subprocess.run(command, check=True, capture_output=True)
    write_config(folder / "tiny.yaml", tiny_config(folder))
    return folder
