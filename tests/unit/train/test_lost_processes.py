"""Which errors say that another process of the run is gone."""

import os
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from moe.train import lost_processes
from moe.train.lost_processes import interrupted_by_lost_processes, is_lost_rank, is_lost_worker
from moe.train.stop import Stopped

KILLED = "DataLoader worker (pid 7) is killed by signal: Killed."


class Rows(Dataset):
    """Ten rows; `third` is called for the third, in the worker."""

    def __init__(self, third: Callable[[], object]) -> None:
        self.third = third

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> int:
        if i == 2:
            self.third()
        return i


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def complains() -> None:
    raise RuntimeError(KILLED)


def after(steps: int) -> Any:
    return SimpleNamespace(steps_done=steps)


def read_all(third: Callable[[], object], busy: float = 0.0) -> tuple[bool, str]:
    """Whether what ends the reading of rows from one worker is a lost worker, and its text. The main thread works on
    each row for `busy` seconds.
    """
    rows: Any = iter(DataLoader(Rows(third), batch_size=1, num_workers=1, multiprocessing_context="fork"))
    raises = signal.getsignal(signal.SIGCHLD)
    try:
        for _ in rows:
            until = time.monotonic() + busy
            while time.monotonic() < until:
                pass
    except (RuntimeError, ConnectionResetError, EOFError) as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise once more
        return is_lost_worker(error), str(error)
    finally:
        rows._shutdown_workers()  # a dead worker that torch still watches would raise in a later test
        signal.signal(signal.SIGCHLD, raises)
    raise AssertionError("all rows were read")


@pytest.mark.parametrize("busy", [0.0, 0.3], ids=["while it is waited for", "while the step is taken"])
def test_a_worker_that_is_killed_is_known_wherever_the_run_is(busy: float) -> None:
    assert read_all(dies, busy)[0]


def test_an_error_in_a_worker_is_no_lost_worker_whatever_its_text_says() -> None:
    """A pattern over messages took it for one, and the run was started again without end."""
    lost, text = read_all(complains)
    assert KILLED in text and not lost


@pytest.mark.parametrize("error", [RuntimeError(KILLED), ConnectionResetError(104, "reset by peer"), EOFError()])
def test_what_does_not_come_from_a_loader_is_no_lost_worker(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, interrupted_by_lost_processes(after(3)):
        raise error
    assert not is_lost_worker(caught.value)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:41", True),
        ("NCCL error: remote process exited or there was a network error", True),
        ("NCCL error: invalid usage", False),
        ("the size of tensor a (3) must match", False),
    ],
)
def test_a_lost_rank_is_told_by_what_its_backend_says(text: str, lost: bool) -> None:
    assert is_lost_rank(RuntimeError(text)) == lost


def test_before_the_first_step_a_loss_is_an_error_after_it_an_interruption(capsys) -> None:
    gone = "gloo: Connection closed by peer"
    with pytest.raises(RuntimeError, match=gone), interrupted_by_lost_processes(after(0)):
        raise RuntimeError(gone)
    assert capsys.readouterr().err == ""
    with pytest.raises(Stopped), interrupted_by_lost_processes(after(1)):
        raise RuntimeError(f"line one\n{gone}")
    assert capsys.readouterr().err.strip().endswith(gone)


def test_over_machines_a_lost_rank_is_an_interruption_before_the_first_step_too(monkeypatch, capsys) -> None:
    """The other machine may have been preempted. A worker is this machine's own: it may be lost at each start."""
    monkeypatch.setattr(lost_processes, "MACHINES", 2)
    gone = "NCCL error: remote process exited"
    with pytest.raises(Stopped, match=gone), interrupted_by_lost_processes(after(0)):
        raise RuntimeError(gone)
    assert capsys.readouterr().err.strip().endswith(gone)
    with pytest.raises(RuntimeError, match="must match"), interrupted_by_lost_processes(after(0)):
        raise RuntimeError("the size of tensor a (3) must match")
    monkeypatch.setattr(lost_processes, "is_lost_worker", lambda error: True)
    with pytest.raises(EOFError), interrupted_by_lost_processes(after(0)):
        raise EOFError
