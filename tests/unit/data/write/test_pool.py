"""The pool: deaths of its workers at any moment, their errors, and Ctrl+C, which the whole group gets and the parent
alone acts on."""

import itertools
import os
import signal
import threading
import time
from multiprocessing.connection import Connection

import pytest

from moe.common.errors import InputError
from moe.data.write import pool


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


def asked_whether_blocked(channel: Connection, *shared: object) -> None:
    """A worker that answers whether Ctrl+C is blocked in it."""
    while True:
        channel.recv()
        channel.send((signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []), None))


def failing(channel: Connection, *shared: object) -> None:
    """A worker whose units raise an error that a broken pipe to it could be taken for."""
    channel.recv()
    channel.send((ConnectionResetError("the hub"), "Traceback of the worker"))


def idle(channel: Connection, *shared: object) -> None:
    time.sleep(60)


def killed_in_the_lock(channel: Connection, work: object, counter: pool.Any) -> None:
    channel.recv()
    counter.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)


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
