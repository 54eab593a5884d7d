"""More shards, or files of text, than a process may have files open."""

import itertools
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from moe.common.environment import LEAST_FILES
from moe.data import build_text_loader
from moe.data.read.maps import MOST_OPEN, Maps
from moe.data.write.shards import ShardFormat
from tests.unit.data.conftest import SEQ_LEN, files_left, make_texts, numbered_rows
from tests.unit.data.read.loaders import numbers, run_ranks, train_loader

SHARDS = 4 * MOST_OPEN


def write_shards(folder: Path, shards: int) -> Path:
    """Shards of two sequences each."""
    (folder / "train").mkdir()
    layout, rows = ShardFormat(seq_len=SEQ_LEN, dtype="uint16"), numbered_rows(2 * shards)
    paths = (folder / "train" / f"shard.{i:05}.mds" for i in range(shards))
    infos = [layout.write(path, rows[2 * i : 2 * i + 2]) for i, path in enumerate(paths)]
    layout.write_index(folder / "train", infos)
    return folder


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write_shards(tmp_path, SHARDS)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """Room for MOST_OPEN shards and 60 more (shared memory, pipes, batches that are sent); not for all."""
    with files_left(MOST_OPEN + 60):
        yield


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_over_more_shards_than_files_may_be_open(many: Path, few_descriptors: None, workers: int) -> None:
    """H1: each shard that was met kept a descriptor."""
    loader = train_loader(many, batch=8, workers=workers, vocab_size=2 * SHARDS + 1)
    assert sorted(number for batch in numbers(loader) for number in batch) == list(range(1, 2 * SHARDS + 1))


def test_ranks_with_workers_read_2000_shards_with_128_files_each(tmp_path: Path) -> None:
    """The least that a run asks for (moe/common/environment.py)."""
    write_shards(tmp_path, 2000)
    ranks = run_ranks(
        {"": [str(tmp_path), None, "train"]}, ranks=2, batch=40, vocab_size=4001, workers=2, files=LEAST_FILES
    )
    assert sorted(row for rank in ranks for batch in rank for row in batch) == list(range(1, 4001))


@pytest.mark.parametrize("workers", [0, 2])
def test_300_files_of_text_are_read_with_60_open(tmp_path: Path, plan: Callable, workers: int) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number, text in enumerate(make_texts(300)):
        (folder / f"{number:03}.jsonl").write_text(json.dumps({"id": str(number), "text": text}) + "\n")
    job = plan(folder).job
    loader, _ = build_text_loader(job, device_batch_size=8, num_workers=workers, document_mask=True)
    with files_left(60):
        assert len(list(itertools.islice(loader, 60))) == 60


def test_a_closed_reader_leaves_no_descriptor(many: Path) -> None:
    dataset = train_loader(many, batch=8, vocab_size=2 * SHARDS + 1).dataset
    for number in range(0, 2 * SHARDS, 2):
        dataset.get_item(number)
    assert open_maps(many) == MOST_OPEN
    del dataset
    assert open_maps(many) == 0


def test_the_maps_of_a_spawned_worker_are_counted_too() -> None:
    maps = pickle.loads(pickle.dumps(Maps()))
    for number in range(MOST_OPEN + 9):
        maps.add(number, np.empty((1, 1)))
    assert len(maps.open) <= MOST_OPEN


def test_all_datasets_of_a_process_together_hold_64_maps(tmp_path: Path) -> None:
    """Training in the trainer's own process, and a dataset for each validation set."""
    datasets = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        datasets.append(train_loader(write_shards(tmp_path / name, 40), batch=8, vocab_size=81).dataset)
    for dataset in datasets:
        for number in range(80):
            assert dataset.get_item(number)[0] == number + 1
    assert open_maps(tmp_path) == MOST_OPEN and open_maps(tmp_path / "c") == 40 and open_maps(tmp_path / "a") == 0
    datasets[0].get_item(0)
    assert open_maps(tmp_path) == MOST_OPEN and open_maps(tmp_path / "a") == 1, "the one read longest ago goes"
    del dataset, datasets[2]
    assert open_maps(tmp_path) == MOST_OPEN - 40


def open_maps(folder: Path) -> int:
    """Descriptors that lead to a shard below the folder."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(f"{folder}/") for link in links if os.path.exists(link))
