"""Runs to export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import write_run, write_text, write_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    return write_tokenizer(folder / "tokenizer", write_text(folder / "text.jsonl"))


@pytest.fixture
def make_run(tmp_path: Path, tokenizer_folder: Path) -> Callable[..., Path]:
    """make_run(steps=(10,), name="run", **model): see write_run."""

    def make(steps: tuple[int, ...] = (10,), name: str = "run", **changes: Any) -> Path:
        return write_run(tmp_path / name, tokenizer_folder, steps=steps, **changes)

    return make
