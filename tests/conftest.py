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
