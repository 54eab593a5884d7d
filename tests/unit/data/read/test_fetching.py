"""A cache smaller than the data: each shard is fetched once in an epoch, before it is needed."""

import collections
import time

import pytest
from streaming import Stream
from streaming.base import stream as stock

from moe.data.write.shards import ShardFormat
from tests.unit.data.conftest import SEQ_LEN, numbered_rows
from tests.unit.data.read.loaders import numbers, train_loader

SHARDS, ROWS, FIT = 16, 60, 8


@pytest.fixture
def remote(tmp_path):
    """SHARDS shards of ROWS samples."""
    folder = tmp_path / "remote" / "train"
    folder.mkdir(parents=True)
    layout, rows = ShardFormat(seq_len=SEQ_LEN, dtype="uint16"), numbered_rows(SHARDS * ROWS)
    infos = [layout.write(folder / f"shard.{i:05}.mds", rows[ROWS * i : ROWS * (i + 1)]) for i in range(SHARDS)]
    layout.write_index(folder, infos)
    return tmp_path / "remote"


def limited(remote, cache, spare=0, **more):
    """A loader whose cache holds the index and FIT shards, and `spare` more."""
    files = sorted((remote / "train").iterdir())
    limit = files[0].stat().st_size + (FIT + spare) * files[1].stat().st_size
    assert files[0].name == "index.json"
    return train_loader(cache, remote=remote, cache_limit=limit, vocab_size=SHARDS * ROWS + 1, **more)


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """Names of the files that were fetched, by any process, in turn; each takes `seconds`."""
    log, plain = tmp_path / "fetched", Stream._download_file
    log.touch()

    def fetch(self, name, to=None):
        time.sleep(found.seconds)
        with open(log, "a") as file:
            file.write(f"{name}\n")
        return plain(self, name, to)

    class Fetched:
        seconds = 0.0

        def count(self):
            return collections.Counter(name for name in log.read_text().split() if name.startswith("shard"))

    found = Fetched()
    monkeypatch.setattr(Stream, "_download_file", fetch)
    return found


@pytest.mark.parametrize(("workers", "stripes"), [(0, 1), (2, 1), (0, 2)])
def test_each_shard_is_fetched_once_in_an_epoch_and_the_order_is_that_of_local_data(
    remote, tmp_path, fetched, workers, stripes
):
    spare = 2 if workers else 0  # workers are up to a block apart here, where a block has seven batches
    loader = limited(remote, tmp_path / "cache", spare=spare, workers=workers, num_canonical_nodes=stripes)
    assert loader.dataset.window == (FIT + spare) // stripes - 2
    loader.dataset.window = FIT // stripes - 2
    local = train_loader(remote, vocab_size=SHARDS * ROWS + 1, num_canonical_nodes=stripes)
    local.dataset.window = loader.dataset.window
    assert numbers(loader) == numbers(local)
    found = fetched.count()
    assert len(found) == SHARDS and set(found.values()) <= ({1} if stripes == 1 else {1, 2})
    assert sum(found.values()) <= SHARDS + stripes - 1, "a shard that two stripes divide may be fetched for each"
    assert len(list((tmp_path / "cache").rglob("*.mds"))) <= FIT + spare + workers  # that fetch at once


@pytest.mark.parametrize("workers", [0, 2])
def test_the_index_is_fetched_once_and_read_once_with_any_number_of_workers(
    remote, tmp_path, fetched, workers, monkeypatch
):
    log, load = tmp_path / "read", stock.json.load
    monkeypatch.setattr(stock.json, "load", lambda file: log.open("a").write("index\n") and load(file))
    numbers(limited(remote, tmp_path / "cache", spare=2, workers=workers))
    assert log.read_text().count("index") == 1
    assert (tmp_path / "fetched").read_text().split().count("index.json") == 1


def test_a_cache_that_is_too_small_for_its_stripes_is_a_warning_and_loses_nothing(remote, tmp_path, fetched, capsys):
    loader = limited(remote, tmp_path / "cache", num_canonical_nodes=4)
    assert "holds 8 shards, and 4 stripes of 1 streams need 3 each" in capsys.readouterr().out
    assert sorted(row for batch in numbers(loader) for row in batch) == list(range(1, SHARDS * ROWS + 1))


def test_a_cache_that_is_too_small_for_the_window_that_a_run_has_is_a_warning(remote, tmp_path, capsys):
    loader = limited(remote, tmp_path / "cache")
    at = {**loader.state_dict(), "order": {"name": "window-1", "window": 32}}
    assert "warning" not in capsys.readouterr().out
    loader.load_state_dict(at)
    assert "holds 8 shards, and 1 stripes of 1 streams need 34 each" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 2])
def test_without_shuffle_each_shard_is_fetched_once_too(remote, tmp_path, fetched, workers):
    loader = limited(remote, tmp_path / "cache", spare=2, workers=workers, shuffle=False)
    assert [row for batch in numbers(loader) for row in batch] == list(range(1, SHARDS * ROWS + 1))
    assert set(fetched.count().values()) == {1} and len(fetched.count()) == SHARDS


def test_after_the_first_window_no_batch_waits_for_a_throttled_remote(remote, tmp_path, fetched):
    fetched.seconds = 0.1
    batches = iter(limited(remote, tmp_path / "cache", batch=20))
    waited = []
    for _ in range(SHARDS * ROWS // 20):
        start = time.monotonic()
        next(batches)
        waited.append(time.monotonic() - start)
        time.sleep(0.1)  # three batches a shard: a shard arrives in a third of the time in which one is read
    assert len(fetched.count()) == SHARDS
    long = [seconds > fetched.seconds / 2 for seconds in waited[FIT * ROWS // 20 :]]
    assert sum(long) < (SHARDS - FIT) / 2, "one for each shard that came later, were they not there before"
