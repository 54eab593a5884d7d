"""A cache smaller than the data: each shard is fetched once in an epoch, before it is needed."""

import collections
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from streaming import Stream
from streaming.base.dataset import _Iterator, _ShardState

from moe.data import StreamSpec
from moe.data.read import index
from moe.data.write.shards import ShardFormat
from tests.unit.data.conftest import SEQ_LEN, numbered_rows
from tests.unit.data.read.loaders import loader_of, numbers, run_ranks, train_loader

SHARDS, ROWS, FIT = 16, 60, 8


def write_remote(folder, first, shards, rows=ROWS):
    """Shards of so many samples, numbered from `first` * `rows` + 1 on."""
    (folder / "train").mkdir(parents=True)
    layout, samples = ShardFormat(seq_len=SEQ_LEN, dtype="uint16"), numbered_rows((first + shards) * rows)
    parts = [samples[rows * i :][:rows] for i in range(first, first + shards)]
    infos = [layout.write(folder / "train" / f"shard.{i:05}.mds", part) for i, part in enumerate(parts)]
    layout.write_index(folder / "train", infos)
    return folder


@pytest.fixture
def remote(tmp_path):
    """SHARDS shards of ROWS samples."""
    return write_remote(tmp_path / "remote", 0, SHARDS)


def write_mixture(folder, rows):
    """Two streams of 10 and 6 shards with caches of their own; the smaller one is read 1.5 times."""
    streams = {"web": (0, 10, None), "code": (10, 6, 1.5)}
    found = {}
    for name, (first, shards, often) in streams.items():
        remote = write_remote(folder / name, first, shards, rows)
        found[name] = StreamSpec(str(folder / "cache" / name), str(remote), "train", repeat=often)
    return found


def limit_of(*folders, shards):
    """A cache_limit with room for the indexes and so many shards."""
    indexes = [folder / "train" / "index.json" for folder in map(Path, folders)]
    return sum(p.stat().st_size for p in indexes) + shards * (indexes[0].parent / "shard.00000.mds").stat().st_size


def limited(remote, cache, spare=0, **more):
    """A loader whose cache holds the index and FIT shards, and `spare` more."""
    limit = limit_of(remote, shards=FIT + spare)
    return train_loader(cache, remote=remote, cache_limit=limit, vocab_size=SHARDS * ROWS + 1, **more)


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """The files that were fetched, by any process, in turn; each takes `seconds`."""
    log, plain = tmp_path / "fetched", Stream._download_file
    log.touch()

    def fetch(self, name, to=None):
        time.sleep(found.seconds)
        path = plain(self, name, to)
        with open(log, "a") as file:
            file.write(f"{Path(self.remote).name}/{name} {time.monotonic()}\n")
        return path

    class Fetched:
        seconds = 0.0

        def lines(self):
            return [(name, float(at)) for name, at in map(str.split, log.read_text().splitlines())]

        def count(self, kind=".mds"):
            return collections.Counter(name for name, _ in self.lines() if name.endswith(kind))

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
    log, parsed = tmp_path / "read", index._parsed
    monkeypatch.setattr(index, "_parsed", lambda place: log.open("a").write("index\n") and parsed(place))
    numbers(limited(remote, tmp_path / "cache", spare=2, workers=workers))
    assert log.read_text().count("index") == 1
    assert sum(fetched.count("index.json").values()) == 1


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


def mixed(specs, *, shards, **more):
    """A loader whose cache holds the indexes and so many shards."""
    limit = limit_of(*(spec.remote for spec in specs.values()), shards=shards)
    return loader_of(specs, cache_limit=limit, vocab_size=16_001, **more)


def as_local(specs, *, window, **more):
    local = {name: StreamSpec(spec.remote, None, "train", repeat=spec.repeat) for name, spec in specs.items()}
    loader = loader_of(local, vocab_size=16_001, **more)
    loader.dataset.window = window
    return numbers(loader)


@pytest.mark.parametrize(("workers", "stripes"), [(0, 1), (2, 1), (0, 2)])
def test_a_mixture_fetches_each_shard_once_in_each_pass(tmp_path, fetched, workers, stripes):
    specs = write_mixture(tmp_path, rows=600)
    more = {"batch": 40, "num_canonical_nodes": stripes}
    loader = mixed(specs, shards=4 * 2 * stripes + workers, workers=workers, **more)
    loader.dataset.window = 2
    assert numbers(loader) == as_local(specs, window=2, **more)
    web, code = ([n for name, n in fetched.count().items() if name.startswith(stream)] for stream in specs)
    divided = stripes - 1  # shards of a stream that two stripes share, which may be fetched for each
    assert len(web) == 10 and sum(web) <= 10 + divided
    half = 3 + 2 * stripes  # of a second pass, which ends with its windows open
    assert len(code) == 6 and max(code) <= 2 * stripes and sum(code) <= 6 + half + 2 * divided


def test_a_shard_that_is_removed_again_before_who_waits_for_it_looks_is_fetched_once_more(remote, tmp_path):
    """H2: stock's thread asked once and waited without end, and the run with it."""
    dataset = limited(remote, tmp_path / "cache").dataset
    dataset._event = threading.Event()
    work = _Iterator(np.array([5, 6, 7]))  # all of the first shard
    dataset._shard_states[0] = _ShardState.PREPARING  # by another thread or process
    waits = threading.Thread(target=dataset._ready_thread, args=(work,), daemon=True)
    waits.start()
    time.sleep(0.05)
    dataset._shard_states[0] = _ShardState.REMOTE  # it came, and was removed for others
    waits.join(10)
    ended = not waits.is_alive()
    dataset._event.set()
    assert ended and work.ready_index == 3 and dataset._shard_states[0] == _ShardState.LOCAL


def test_shards_that_are_removed_before_they_are_read_are_fetched_again(tmp_path, fetched):
    """Shards of fewer sequences than a block of shares, in the least cache."""
    specs = write_mixture(tmp_path, rows=ROWS)
    loader = mixed(specs, shards=6)
    late = threading.Timer(60, lambda: os.kill(os.getpid(), signal.SIGINT))
    late.start()
    try:
        seen = numbers(loader)
    finally:
        late.cancel()
    assert sum(fetched.count().values()) > 32, "this cache is too small for it"
    assert loader.dataset.window == 1 and seen == as_local(specs, window=1)


def test_ranks_that_share_a_cache_fetch_each_shard_once(remote, tmp_path, fetched):
    specs = {"": [str(tmp_path / "cache"), str(remote), "train"]}
    limit = limit_of(remote, shards=FIT + 2)
    ranks = run_ranks(specs, ranks=2, batch=4, vocab_size=SHARDS * ROWS + 1, cache_limit=limit, in_step=True)
    assert sorted(row for rank in ranks for batch in rank for row in batch) == list(range(1, SHARDS * ROWS + 1))
    assert len(fetched.count()) == SHARDS and set(fetched.count().values()) == {1}
    assert sum(fetched.count("index.json").values()) == 1


@pytest.mark.parametrize("streams", [1, 2])
def test_after_the_first_window_no_batch_waits_for_a_throttled_remote(remote, tmp_path, fetched, streams):
    """A batch waits where a shard of it arrives after it was asked for."""
    fetched.seconds = 0.06
    rows, specs = ROWS, {"remote": StreamSpec(str(tmp_path / "cache"), str(remote), "train")}
    if streams == 2:
        rows, specs = 600, write_mixture(tmp_path, rows=600)
    loader = mixed(specs, shards=FIT, batch=rows // 3)
    batches, read = iter(loader), []
    for _ in range(len(loader)):
        start = time.monotonic()
        numbered = next(batches)["tokens"][:, 0].tolist()
        read.append((start, time.monotonic(), {(number - 1) // rows for number in numbered}))
        time.sleep(0.06)  # three batches a shard: a shard arrives in a third of the time in which one is read
    first, arrived = {"remote": 0, "web": 0, "code": 10}, collections.defaultdict(list)
    for name, at in fetched.lines():
        stream, file = name.split("/")
        if file.endswith(".mds"):
            arrived[first[stream] + int(file.split(".")[1])].append(at)
    late = [
        number
        for number, (start, end, shards) in enumerate(read)
        if any(start < at <= end for shard in shards for at in arrived[shard])
    ]
    assert set(arrived) == set(range(SHARDS)) and late[:1] == [0], "the first batch cannot but wait"
    assert late[-1] < 3 * loader.dataset.window * streams, late
