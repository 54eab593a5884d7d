"""index.json: parsed once in a process and read once on a machine, anew where the file has changed, and in little
memory.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from multiprocessing.connection import Connection
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


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The index.json files that this process, or one that it forks, has opened; copies are kept in `tmp_path`."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(index, "_read", {})
    OPENED.append([])
    yield OPENED[-1]
    OPENED.clear()


OPENED: list[list[str]] = []
HOOKED: list[bool] = []


def _note(event: str, arguments: tuple) -> None:
    if OPENED and event == "open" and str(arguments[0]).endswith("index.json") and "w" not in str(arguments[1]):
        OPENED[-1].append(str(arguments[0]))


@pytest.fixture(autouse=True)
def _hook() -> None:
    if not HOOKED:  # one stays until the process ends
        HOOKED.append(True)
        sys.addaudithook(_note)


def many_shards(folder: Path, count: int = 2000) -> Path:
    (folder / "train").mkdir(parents=True)
    layout = ShardFormat(seq_len=16, dtype="uint16")
    infos = [{"samples": 1000 + i, "bytes": 36_000 + i, "xxh64": f"{i:016x}"} for i in range(count)]
    layout.write_index(folder / "train", infos)
    return folder


def _a_rank(folder: Path, answer: Connection) -> None:
    from streaming.base.world import World

    from moe.data.read.stream import TokenStream

    OPENED[-1].clear()
    shards = read_index(open_folder(folder / "train"))
    readers = TokenStream(local=str(folder), split="train").get_shards(World.detect(), False)
    alike = [(r.raw_data.basename, r.raw_data.bytes, r.samples, r.raw_data.hashes["xxh64"]) for r in readers] == [
        (s.name, s.bytes, s.samples, s.xxh64) for s in shards
    ]
    answer.send((len(OPENED[-1]), hash(tuple(s[:-1] for s in shards)), alike))


def test_ranks_of_a_machine_read_an_index_once_together(tmp_path: Path, opened: list[str]) -> None:
    """The check of the data and Streaming's readers included. Four ranks begin at the same moment."""
    folder, processes = many_shards(tmp_path / "data"), multiprocessing.get_context("fork")
    pipes = [processes.Pipe() for _ in range(4)]
    ranks = [processes.Process(target=_a_rank, args=(folder, theirs)) for _, theirs in pipes]
    for rank in ranks:
        rank.start()
    answers = [ours.recv() for ours, _ in pipes if ours.poll(60)]
    for rank in ranks:
        rank.join()
    assert sorted(count for count, _, _ in answers) == [0, 0, 0, 1]
    assert len({found for _, found, _ in answers}) == 1 and all(alike for *_, alike in answers)
    plain = index._parsed(open_folder(folder / "train"))
    assert read_index(open_folder(folder / "train")) == plain and len(opened) == 1  # by the line before


def test_a_copy_that_is_old_or_torn_or_of_others_is_not_taken(tmp_path: Path, opened: list[str]) -> None:
    place = open_folder(many_shards(tmp_path / "data") / "train")
    first = read_index(place)
    (home,) = tmp_path.glob("moe-parsed-*")
    (copy,) = (path for path in home.iterdir() if not path.suffix)
    for spoil in (lambda: copy.write_bytes(bytes(copy.stat().st_size)), lambda: home.chmod(0o777)):
        opened.clear()
        spoil()
        index._read.clear()
        assert read_index(place) == first and len(opened) == 1
    home.chmod(0o700)
    week = time.time() - 8 * 86400
    (home / "notes.txt").touch()
    for path in home.iterdir():
        os.utime(path, (week, week))
    many_shards(tmp_path / "again", 2001)
    index._read.clear()
    opened.clear()
    assert len(read_index(open_folder(tmp_path / "again" / "train"))) == 2001 and len(opened) == 1
    assert not copy.exists() and (home / "notes.txt").exists()  # only what was made here goes
    content = json.loads((tmp_path / "data" / "train" / "index.json").read_text())
    content["shards"].pop()
    (tmp_path / "data" / "train" / "index.json").write_text(json.dumps(content))
    assert read_index(place) == first[:-1]


def test_packed_shards_keep_their_names_and_hashes_in_the_copy(tmp_path: Path, opened: list[str]) -> None:
    folder = many_shards(tmp_path / "data") / "train"
    content = json.loads((folder / "index.json").read_text())
    for i, entry in enumerate(content["shards"][::2]):
        packed = {"basename": f"{entry['raw_data']['basename']}.zstd", "bytes": 9 + i, "hashes": {"xxh64": "77"}}
        entry |= {"compression": "zstd", "zip_data": packed}
    (folder / "index.json").write_text(json.dumps(content))
    opened.clear()
    plain = index._parsed(open_folder(folder))
    for _ in range(2):
        index._read.clear()
        assert read_index(open_folder(folder)) == plain
    assert len(opened) == 2 and plain[0].packed_xxh64 == "77" and plain[1].packed is None
    assert len({id(shard.layout) for shard in read_index(open_folder(folder))}) == 2
