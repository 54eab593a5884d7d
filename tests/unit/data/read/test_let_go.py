"""What a process that reads without workers keeps of a pass that has ended."""

import gc
import threading
import tracemalloc

import numpy as np

from moe.data.read.order import Order
from moe.data.read.work import CHUNK, Place, Work
from tests.unit.data.read.loaders import begun, numbers, train_loader
from tests.unit.data.read.test_fetching import write_remote


def kept():
    gc.collect()
    calls = [call for call in threading._threading_atexits if "_Iterator" in repr(call)]
    return sum(isinstance(thing, Work) for thing in gc.get_objects()), len(calls)


def in_all(loader):
    return sorted(number for batch in numbers(loader) for number in batch)


def test_a_pass_that_has_ended_is_let_go(tmp_path):
    loader = train_loader(write_remote(tmp_path / "data", 0, 2))
    before = kept()
    first = in_all(loader)
    assert in_all(loader) == first
    assert kept() == before
    for _ in range(4):
        begun(loader, 2)  # and left, as an evaluation of some batches does
    works, calls = kept()
    assert works <= before[0] + 1 and calls <= before[1] + 1
    assert in_all(loader) == first and kept() == before


def test_what_is_worked_out_ahead_takes_eight_bytes_a_sample():
    """Lists of ints took 39: a loader worker grew with each chunk of its epoch, up to four."""
    count = 6 * CHUNK
    order = Order([np.full(count // 256, 256)], [count], seed=3, stripes=1, window=8, shuffle=True)
    work = Work(order, 0, 0, Place(batch_size=8))
    assert sorted(work) == list(range(count))
    gc.collect()
    tracemalloc.start()
    again = Work(order, 0, 0, Place(batch_size=8))
    assert all(sample == again[number] for number, sample in enumerate(again))
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 10 * 4 * CHUNK, held
