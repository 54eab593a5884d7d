"""The pool and Ctrl+C: the whole group gets it, the parent alone acts on it."""

import signal
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest

from moe.common.errors import InputError
from moe.data.write import pool


def blocked(unit: object) -> bool:
    """In the place of a unit: whether Ctrl+C is blocked in this worker."""
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def nothing(*work: object) -> None:
    pass


def test_workers_are_born_deaf_to_ctrl_c_and_their_parent_is_not(monkeypatch):
    """A worker that got it while it starts would end in a traceback of its imports."""
    monkeypatch.setattr(pool, "_run", blocked)
    monkeypatch.setattr(pool, "_start_worker", nothing)
    found: list[object] = []
    pool.run_units("job", [1, 2], "folder", workers=2, counter=None, finished=lambda unit, fault: found.append(fault))
    assert found == [True] or found == [True, True]
    assert not blocked(None)


def test_ctrl_c_is_heard_again_whatever_happens_while_workers_start(monkeypatch):
    """It ends the work, be it that moment or the next; and so does a pool that breaks."""

    def interrupted() -> Future:
        signal.raise_signal(signal.SIGINT)  # to this thread: another one of the process might hear it late
        return Future()

    def broken() -> Future:
        raise BrokenProcessPool("a worker died")

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a launcher may have had it ignored
    for submit, outcome in ((interrupted, KeyboardInterrupt), (broken, InputError)):
        executor = SimpleNamespace(submit=lambda *task, submit=submit: submit(), shutdown=nothing)
        monkeypatch.setattr(pool, "ProcessPoolExecutor", lambda *_, executor=executor, **__: executor)
        with pytest.raises(outcome):
            pool.run_units("job", [1, 2], "folder", workers=2, counter=None, finished=lambda unit, fault: True)
        assert not blocked(None)
