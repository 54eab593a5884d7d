"""Of a hub's listing the same is text as of a folder here."""

import gzip
import json
from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.data.text.sources import resolve

DATASET = {"dataset": ("some/set",), "config": None, "split": "train", "revision": None}


def lay(folder: Path, **files: str) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_what_a_folder_here_would_not_give_the_hub_does_not_give_either(serve, folder: Path) -> None:
    """A21: hidden copies and the files of a tokenizer were trained on; kinds and copies were not told."""
    text = json.dumps({"text": "once upon a time"}) + "\n"
    files = {
        "a.jsonl": text,
        ".ipynb_checkpoints/a-checkpoint.jsonl": text,
        "deep/.cache/b.jsonl": text,
        "tok/tokenizer.json": "{}",
        "tok/config.json": "{}",
        "tok/merges.txt": "a b",
        "made/meta.json": "{}",
        "made/train/index.json": "{}",
        "made/notes.txt": "of a conversion",
        "notes.txt": "a text",
        "deep/copy.jsonl": text,
    }
    lay(folder, **files)
    (folder / "notes.txt.gz").write_bytes(gzip.compress(b"a text"))
    serve()
    hub = resolve(**DATASET)
    here = resolve(**{**DATASET, "dataset": (str(folder),)})
    expected = ["a.jsonl", "deep/copy.jsonl", "notes.txt", "notes.txt.gz"]
    assert [file.name for file in hub.files] == [file.name for file in here.files] == expected
    assert sorted(hub.notes) == sorted(here.notes) and len(hub.notes) == 3
    reasons = {one.name: one.reason for one in hub.left_out}
    assert reasons["tok/"] == "made by this project: a tokenizer or an export"
    assert reasons["made/"] == "made by this project: a converted dataset"
    assert reasons["deep/.cache/b.jsonl"].startswith("hidden")


def test_a_converted_dataset_on_the_hub_is_no_text(serve, folder: Path) -> None:
    """A21: its meta.json was trained on."""
    lay(folder, **{"meta.json": "{}", "train/index.json": "{}", "notes.txt": "a text"})
    serve()
    with pytest.raises(InputError, match="some/set: is a converted dataset, not text"):
        resolve(**DATASET)


def test_a_tokenizer_beside_the_text_of_a_dataset_takes_nothing_away(serve, folder: Path) -> None:
    lay(folder, **{"tokenizer.json": "{}", "config.json": "{}", "a.txt": "a text"})
    serve()
    assert [file.name for file in resolve(**DATASET).files] == ["a.txt", "config.json"]
