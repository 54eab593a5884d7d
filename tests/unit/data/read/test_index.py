"""index.json: parsed once in a process, anew where the file has changed, and in little memory."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.data.locations import open_folder
from moe.data.read import index
from moe.data.read.index import read_index
from moe.data.read.verify import verify_split
from moe.data.write.shards import ShardFormat
from tests.tiny import tiny_config, write_config
from tests.unit.data.conftest import numbered_rows, write_split


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders whose index was parsed."""
    found: list[str] = []
    plain = index._parsed
    monkeypatch.setattr(index, "_parsed", lambda place: found.append(str(place)) or plain(place))
    return found


def test_an_index_is_parsed_again_only_where_it_has_changed(tmp_path: Path, parsed: list[str]) -> None:
    folder = write_split(tmp_path / "train", numbered_rows(230))
    place = open_folder(folder)
    first = read_index(place)
    assert verify_split(folder) == [] and read_index(place) is first and parsed == [str(folder)]
    assert [shard.name for shard in first] == sorted(path.name for path in folder.glob("*.mds"))
    content = json.loads((folder / "index.json").read_text())
    content["shards"].pop()
    os.replace(folder / "index.json", tmp_path / "former")
    with pytest.raises(InputError, match=r"index\.json: missing"):
        read_index(place)
    (folder / "index.json").write_text(json.dumps(content))
    assert read_index(place) == first[:-1] and len(parsed) == 3
    (folder / "index.json").write_text("{")
    assert "not an MDS index" in verify_split(folder)[0]


def test_a_start_parses_each_index_once(tiny: Path, tmp_path: Path, parsed: list[str]) -> None:
    from moe.config import load_config
    from moe.config.steps import Steps
    from moe.train.inputs import check_data
    from moe.train.loaders import build_evaluators, build_train_spec

    index._read.clear()
    config = load_config(write_config(tmp_path / "c.yaml", tiny_config(tiny)), [])
    inputs = check_data(config, lambda line: None)
    build_train_spec(config, inputs, 1)
    build_evaluators(config, inputs, Steps.of(config), 1)
    assert sorted(parsed) == [str(tiny / "data" / split) for split in ("train", "val")]


def test_an_index_takes_little_memory_for_each_shard(tmp_path: Path) -> None:
    layout = ShardFormat(seq_len=16, dtype="uint16")
    infos = [{"samples": 1000 + i, "bytes": 36_000 + i, "xxh64": f"{i:016x}"} for i in range(5000)]
    layout.write_index(tmp_path, infos)
    tracemalloc.start()
    shards = read_index(open_folder(tmp_path))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(shards) == 5000 and kept < 500 * 5000, f"{kept / 5000:.0f} bytes a shard"
