"""The pool: deaths of its workers at any moment, their errors, and Ctrl+C, which the whole group gets and the parent
alone acts on."""

import itertools
import os
import signal
import threading
import time

import pytest

from moe.common.errors import InputError
from moe.data.text.files import SourceFile, Unit
from moe.data.write import items, packing, pool
from moe.data.write.convert import convert as convert_all
from moe.data.write.items import Item
from tests.unit.data.conftest import make_texts, write_parquet
from tests.unit.data.write.pool_lives import (
    aborted,
    aborted_before,
    asked_whether_blocked,
    failing,
    idle,
    killed_in_the_lock,
)


def convert(work, *, units=(1, 2, 3, 4), monkeypatch):
    """Runs the pool with `work` as the life of its two workers. Returns what came of each unit."""
    monkeypatch.setattr(pool, "_work", work)
    found: dict[int, object] = {}
    counter = pool.new_counter()
    pool.run_units(
        "job",
        units,
        "folder",
        workers=2,
        counter=counter,
        finished=lambda unit, error: found.update({unit: error}) or True,
    )
    return found


def heard() -> bool:
    return signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_workers_are_born_deaf_to_ctrl_c_and_their_parent_is_not(monkeypatch):
    """A worker that got it while it starts would end in a traceback of its imports."""
    assert convert(asked_whether_blocked, monkeypatch=monkeypatch) == dict.fromkeys([1, 2, 3, 4], True)
    assert heard()


def test_ctrl_c_is_heard_again_whatever_happens_while_workers_start(monkeypatch):
    """It ends the work, be it that moment or the next."""

    def interrupted(*shared: object) -> None:
        signal.raise_signal(signal.SIGINT)  # to this thread: another one of the process might hear it late

    def broken(*shared: object) -> None:
        raise OSError("no process can be started")

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a launcher may have had it ignored
    for start, outcome in ((interrupted, KeyboardInterrupt), (broken, OSError)):
        monkeypatch.setattr(pool, "_Worker", start)
        with pytest.raises(outcome):
            pool.run_units("job", [1, 2], "folder", workers=2, counter=None, finished=lambda unit, error: True)
        assert heard()


def test_what_a_worker_raises_is_raised_here_with_its_traceback(monkeypatch):
    with pytest.raises(ConnectionResetError, match="the hub") as raised:
        convert(failing, monkeypatch=monkeypatch)
    assert "Traceback of the worker" in str(raised.value.__cause__)


@pytest.mark.parametrize("number", [0, 1])
def test_a_worker_that_dies_at_any_moment_of_the_start_is_one_message(monkeypatch, number):
    """While the others start, before and after it is given its first unit."""
    started, make = itertools.count(), pool._Worker

    def start(*shared: object) -> pool._Worker:
        worker = make(*shared)
        if next(started) == number:
            os.kill(max(process.pid for process in pool.multiprocessing.active_children()), signal.SIGKILL)
            time.sleep(0.1)
        return worker

    monkeypatch.setattr(pool, "_Worker", start)
    with pytest.raises(InputError, match="a worker process died"):
        convert(idle, monkeypatch=monkeypatch)
    assert not pool.multiprocessing.active_children()


def test_a_worker_killed_while_it_counts_holds_nobody_up(monkeypatch):
    with pytest.raises(InputError, match="a worker process died"):
        convert(killed_in_the_lock, monkeypatch=monkeypatch)
    counter = pool.new_counter()
    pool.add(counter, 3, 2, 1)
    with counter.get_lock():
        seen: list[list[int]] = []
        reader = threading.Thread(target=lambda: seen.append(pool.counted(counter)), daemon=True)
        reader.start()
        reader.join(10)
    assert seen == [[3, 2, 1]]


@pytest.mark.parametrize(
    ("work", "said"), [(aborted, "SIGABRT while it read b/5.parquet, most"), (aborted_before, "SIGABRT, most")]
)
def test_a_worker_that_a_library_aborts_names_the_file_and_what_to_do(monkeypatch, work, said):
    """It was told to be a lack of memory, and --workers to be the fix."""
    units = [Unit(i, SourceFile(f"b/{i}.parquet", "", "parquet", 1, ""), 0, 1, 1) for i in (4, 5, 6)]
    with pytest.raises(InputError, match=said) as raised:
        convert(work, units=[Item(tuple(units))], monkeypatch=monkeypatch)
    assert "fetch the file again" in str(raised.value) and "memory" not in str(raised.value)
    assert "remove it" not in str(raised.value), "that is refused: the places of the others count"
    assert "an empty file in its place and --skip-bad-files" in str(raised.value)


def test_each_file_is_noted_before_it_is_read(make_request, tmp_path, monkeypatch):
    """By itself, with others, and one that is too large for that."""
    monkeypatch.setattr(items, "MANY", 3)
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 300)
    for number, texts in enumerate((20, 2, 2, 200)):
        write_parquet(tmp_path / "text" / f"{number}.parquet", make_texts(texts))
    read: list[int] = []
    make = items.make_unit
    begun: list[int] = []
    monkeypatch.setattr(
        items, "make_unit", lambda job, unit, *more: read.append(unit.file_index) or make(job, unit, *more)
    )
    run = pool.convert_item
    monkeypatch.setattr(pool, "convert_item", lambda *given: run(*given, lambda unit: begun.append(unit.file_index)))
    convert_all(make_request(workers=1))
    assert read == [0, 1, 2, 3] and sorted(set(begun)) == read and len(begun) > len(read)
