"""Signals while the main thread waits in C, where Python's handlers do not run; and what an end in C leaves."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

import moe.train.stop as stop_module
from moe.train.stop import EXIT_STOPPED, StopSignal
from tests.ranks import on_ranks
from tests.tiny import tiny_config, write_config

ROOT = Path(__file__).resolve().parents[3]
INSTALL = StopSignal.install  # the tests of this folder run without it


def in_a_collective(rank: int) -> None:
    """Rank 0 waits for rank 1 as in a step, and gets SIGTERM then."""
    if rank == 1:
        time.sleep(60)
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    stop = StopSignal()
    stop.set_grace(0.5)
    stop.training = True
    INSTALL(stop)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    torch.distributed.all_reduce(torch.ones(1))


def test_a_signal_during_a_collective_ends_the_rank_after_its_grace() -> None:
    """It was noticed when the collective ended: after half an hour, or never."""
    began = time.monotonic()
    with pytest.raises(ProcessExitedException) as ended:
        on_ranks(2, in_a_collective)
    assert ended.value.exit_code == EXIT_STOPPED and time.monotonic() - began < 20


@pytest.mark.parametrize("late", [True, False], ids=["handler as the thread acts", "handler long before"])
def test_one_ctrl_c_counts_once_however_the_handler_and_the_thread_meet(monkeypatch, late: bool) -> None:
    """The handler that ran between the thread's look and its note made two of one: no save, and 130."""
    monkeypatch.setattr(stop_module, "LOOK", 0.05)
    codes: list[int] = []
    monkeypatch.setattr(stop_module.os, "_exit", codes.append)
    stop = StopSignal()
    stop.training = True
    signal.signal(signal.SIGINT, stop._handle)
    handler = threading.Thread(target=stop._handle, args=(signal.SIGINT, None))

    class Notes(list):
        def append(self, number: int) -> None:  # the thread has looked, and not acted yet
            handler.start()
            handler.join(0.2)
            super().append(number)

    if late:
        stop._handled_by_thread = Notes()
    else:
        handler.start()
    stop.noted(signal.SIGINT)
    handler.join(5)
    assert not handler.is_alive() and stop._interrupts == 1 and codes == []
    stop._handle(signal.SIGINT, None)
    assert stop._interrupts == 2 and codes == [130]


def test_a_rank_that_dies_in_c_says_where(tiny: Path, tmp_path: Path) -> None:
    """A corrupt heap ended a rank with one line of glibc's."""
    config = write_config(tmp_path / "c.yaml", tiny_config(tiny, save_folder=str(tmp_path / "run")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONFAULTHANDLER", None)
    command = ["bash", "-c", 'ulimit -c 0; exec "$0" "$@"', sys.executable, str(ROOT / "train.py"), str(config)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout is not None and process.stdout.readline().startswith("moe: reading")
    process.send_signal(signal.SIGABRT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in err and 'moe/cli/train.py", line' in err
