"""The order of samples, held against plain lists, and what it promises of itself."""

import collections
import itertools
import tracemalloc

import numpy as np
import pytest

from moe.data.read.order import Order, window_of
from moe.data.read.permutation import key_of, permuted, scattered
from moe.data.read.shares import BLOCK, Shares
from moe.data.read.work import CHUNK, Place, Work
from tests.unit.data.read.plain_order import plain_epoch

CASES = {  # sizes of the shards of each stream, samples of each stream in an epoch, stripes, window
    "one shard": ([[16]], [16], 1, 4),
    "unequal shards": ([[7, 1, 12, 0, 5, 9]], [32], 2, 2),
    "as many shards as are mixed": ([[5, 5, 5]], [12], 1, 3),
    "one shard more": ([[5, 5, 5, 5]], [20], 1, 3),
    "more stripes than shards": ([[11, 3]], [12], 4, 2),
    "one shard at a time": ([[4, 8, 4, 3]], [16], 2, 1),
    "a part of it": ([[9] * 9], [24], 2, 3),
    "more than twice": ([[3, 4], [5] * 8], [16, 40], 2, 2),
    "three streams": ([[400, 300], [50] * 4, [2, 1]], [640, 150, 10], 1, 2),
}
WRITTEN, WRITTEN_ORDER = [9, 1, 0, 2, 8, 4, 6, 5, 7, 3], [2, 5, 6, 30, 0, 1, 3, 33]


def order_of(case, seed=5):
    sizes, counts, stripes, window = CASES[case]
    return Order([np.array(of) for of in sizes], counts, seed=seed, stripes=stripes, window=window)


def stripes_of(order, epoch):
    length = order.length // order.stripes
    return [order.samples(epoch, np.full(length, c), np.arange(length)).tolist() for c in range(order.stripes)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 127, 128, 129, 1023, 1025, 4096, 65_537])
def test_a_permutation_of_any_size_meets_each_element_once(size):
    for key in (0, 1, 2**64 - 1):
        moved = permuted(np.arange(size), np.full(size, size), np.full(size, key, np.uint64))
        assert np.array_equal(np.sort(moved), np.arange(size))


def test_elements_of_many_small_sets_are_moved_at_once_as_one_by_one():
    sizes = np.array([1, 2, 5, 64, 65, 1000, 2**40 + 1])
    elements, keys = sizes - 1, scattered(3, np.arange(len(sizes)))
    one_by_one = [int(permuted(*(of[i : i + 1] for of in (elements, sizes, keys)))[0]) for i in range(len(sizes))]
    assert permuted(elements, sizes, keys).tolist() == one_by_one


def test_the_permutation_is_the_one_that_was_written_down():
    """Runs resume by it on every machine and with every numpy: it never changes."""
    keys = np.full(10, key_of(17, 3), np.uint64)
    assert permuted(np.arange(10), np.full(10, 10), keys).tolist() == WRITTEN
    assert order_of("unequal shards").samples(1, np.zeros(8, int), np.arange(8)).tolist() == WRITTEN_ORDER


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_every_order_of_a_small_set_comes_about_equally_often(size):
    """Chi-square over 24,000 keys, all orders being equally likely: within six standard deviations."""
    draws = 24_000
    keys = np.repeat(scattered(9, np.arange(draws)), size)
    moved = permuted(np.tile(np.arange(size), draws), np.full(size * draws, size), keys).reshape(draws, size)
    orders = int(np.prod(np.arange(1, size + 1)))
    found = np.array(list(collections.Counter(map(tuple, moved.tolist())).values()))
    assert len(found) == orders
    chi = float(((found - draws / orders) ** 2).sum() / (draws / orders))
    assert abs(chi - (orders - 1)) < 6 * np.sqrt(2 * (orders - 1))


@pytest.mark.parametrize("case", CASES)
def test_the_order_is_that_of_plain_lists(case):
    sizes, counts, stripes, window = CASES[case]
    for epoch in (0, 3):
        plain = plain_epoch(sizes, counts, seed=5, stripes=stripes, window=window, epoch=epoch)
        assert stripes_of(order_of(case), epoch) == plain


def test_whatever_the_sizes_each_sample_comes_as_often_as_any_other_of_its_stream():
    random = np.random.default_rng(0)
    for case in range(150):
        streams, stripes, window = (int(random.integers(1, 5)) for _ in range(3))
        sizes = [np.append(random.integers(0, 12, random.integers(0, 12)), 1 + case % 7) for _ in range(streams)]
        held = [int(of.sum()) for of in sizes]
        counts = [max(1, int(of * random.uniform(0.3, 2.5))) for of in held] if case % 3 else list(held)
        counts[0] += -sum(counts) % stripes
        order = Order(sizes, counts, seed=case, stripes=stripes, window=window)
        seen = np.bincount(np.concatenate(stripes_of(order, case % 4)), minlength=sum(held))
        for of, count, first in zip(held, counts, np.cumsum([0, *held]), strict=False):
            part = seen[first : first + of]
            assert part.sum() == count and part.max() - part.min() <= 1, (case, sizes, counts)


def test_epochs_and_seeds_differ_and_a_stripe_keeps_its_shards():
    sizes = [np.full(40, 10)]
    epochs = [
        [set(of) for of in stripes_of(Order(sizes, [400], seed=1, stripes=4, window=3), epoch)] for epoch in (0, 1)
    ]
    assert epochs[0] == epochs[1]
    orders = [
        stripes_of(Order(sizes, [400], seed=seed, stripes=4, window=3), epoch)
        for seed, epoch in ((1, 0), (1, 1), (2, 0))
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2]
    assert [set(of) for of in orders[0]] != [set(of) for of in orders[2]]


@pytest.mark.parametrize(("stripes", "ranks"), [(1, (1, 2, 3, 6)), (2, (1, 2, 6)), (6, (1, 3, 4))])
def test_ranks_workers_and_resuming_leave_every_global_batch_as_it_is(stripes, ranks):
    batch = 12
    sizes, counts = [[9, 4, 30, 1] * 4, [20, 11]], [150, 66]
    plain = plain_epoch(sizes, counts, seed=3, stripes=stripes, window=2, epoch=1)
    rows = batch // stripes
    whole = [[s for of in plain for s in of[i * rows : (i + 1) * rows]] for i in range(sum(counts) // batch)]
    order = Order([np.array(of) for of in sizes], counts, seed=3, stripes=stripes, window=2)
    for of in ranks:
        for workers in (1, 2, 5):
            for done in (0, 5, len(whole) - 1, len(whole)):
                parts = []
                for rank in range(of):
                    places = [Place(batch // of, rank, of, worker, workers) for worker in range(workers)]
                    turns = [list(Work(order, 1, done * batch, place)) for place in places]
                    parts.append(in_turn(turns, batch // of))
                together = [[s for part in parts for s in part[i]] for i in range(len(whole) - done)]
                assert together == whole[done:]


def in_turn(workers, size):
    """Batches as a DataLoader takes them."""
    batches = [[of[i : i + size] for i in range(0, len(of), size)] for of in workers]
    return [of[turn] for turn in range(len(batches[0])) for of in batches if turn < len(of)]


def test_a_sequence_of_work_reads_anywhere():
    order = Order([np.full(3, 5000)], [14_400], seed=1, window=2)
    work = Work(order, 0, 800, Place(100, 1, 4, 1, 2))
    whole = list(work)
    assert len(work) == len(whole) == 100 * 17  # global batches of 400: 2 are done, this worker has 17 of the rest
    assert [work[i] for i in (0, 1699, CHUNK % 1700, 5)] == [whole[i] for i in (0, 1699, CHUNK % 1700, 5)]
    long = Work(order, 0, 0, Place(400))
    assert [long[i] for i in (CHUNK - 1, CHUNK, 3 * CHUNK + 7)] == [
        list(long)[i] for i in (CHUNK - 1, CHUNK, 3 * CHUNK + 7)
    ]


def test_shares_are_within_a_sample_at_every_block_and_exact_at_the_end():
    counts = np.array([[50_000, 3000, 7, 1]])
    shares = Shares(counts)
    positions = np.arange(shares.positions)
    stream, nth = shares.stream_of(1, np.zeros_like(positions), positions)
    for name, count in enumerate(counts[0]):
        assert sorted(nth[stream == name].tolist()) == list(range(count))
        had = np.cumsum(stream == name)[BLOCK - 1 :: BLOCK]
        share = count / shares.positions * np.arange(BLOCK, shares.positions + 1, BLOCK)
        assert np.abs(had - share).max() < 4, "a block's begin may be off by half the streams"


def test_memory_is_that_of_the_shards_not_of_the_samples():
    shards = 200_000
    sizes = [np.full(shards, 65_000)]  # 13 billion samples
    tracemalloc.start()
    order = Order(sizes, [shards * 65_000], seed=1)
    first = order.samples(0, np.zeros(CHUNK, int), np.arange(CHUNK))
    kept, _ = tracemalloc.get_traced_memory()
    last = order.samples(0, np.zeros(CHUNK, int), np.arange(order.length - CHUNK, order.length))
    tracemalloc.stop()
    assert len(np.unique(first)) == len(np.unique(last)) == CHUNK
    assert kept < 32 * shards + 300_000, f"{kept / shards:.1f} bytes a shard"


def test_the_window_is_what_may_stay_open_and_what_the_cache_holds():
    assert window_of(1, 1) == 32 and window_of(4, 2) == 4 and window_of(64, 3) == 1
    assert window_of(1, 1, 10) == 8 and window_of(2, 1, 10) == 3 and window_of(1, 1, 4) == 2 and window_of(8, 1, 4) == 1


def test_a_shard_is_needed_in_one_run_and_one_comes_at_a_time():
    """What the cache counts on: of a stripe with W shards at a time, W + 2 are enough."""
    order, window = Order([np.full(20, 30)], [600], seed=2, window=4), 4
    needed: list[set[int]] = []
    for first in range(0, 600, 10):
        ahead = order.shards_ahead(0, np.zeros(10, int), np.arange(first, first + 10))
        now = set((order.samples(0, np.zeros(10, int), np.arange(first, first + 10)) // 30).tolist())
        assert now <= set(ahead) and len(ahead) <= window + 2
        needed.append(set(ahead))
    for shard in range(20):
        there = [shard in of for of in needed]
        assert sum(a != b for a, b in zip([False, *there], [*there, False], strict=True)) == 2
    assert all(len(b - a) <= 1 for a, b in itertools.pairwise(needed))


def test_without_shuffle_samples_come_as_they_lie():
    order = Order([np.array([3, 2]), np.array([4])], [10, 6], seed=1, stripes=2, shuffle=False)
    whole = np.stack(stripes_of(order, 4), axis=1).reshape(-1).tolist()
    assert whole == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6]
    for first in range(0, 16, 4):  # two batches of two rows a stripe
        at = np.tile([0, 1], 2), np.repeat(np.arange(first // 2, first // 2 + 2), 2)
        needed = np.searchsorted([3, 5, 9], order.samples(0, *at), "right").tolist()
        ahead = order.shards_ahead(0, *at)
        assert list(dict.fromkeys(needed)) == [shard for shard in ahead if shard in needed], "in the order of their use"
        assert len(ahead) <= len(set(needed)) + 2, "and one behind them in each stream"
