"""`moe demo`: what a Ctrl+C leaves."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from moe.cli import demo

SAVES = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (time.sleep(1.0), open(sys.argv[1], "w").close(), sys.exit(75)))
open(sys.argv[1] + ".ready", "w").close()
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _pythons_own_handler():
    """A run that was trained in this process before has left Composer's."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_once_ready(mark: Path) -> threading.Thread:
    """Ctrl+C: SIGINT to this process and to the one it started."""

    def send() -> None:
        while not Path(f"{mark}.ready").exists():
            time.sleep(0.02)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children:
            if str(mark).encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_ctrl_c_waits_until_the_run_has_saved_and_gives_its_code(tmp_path: Path, capsys) -> None:
    mark = tmp_path / "saved"
    thread = interrupt_once_ready(mark)
    code = demo._call([sys.executable, "-c", SAVES, str(mark)], "python")
    thread.join()
    assert code == 75 and mark.exists()
    assert "stopping: the run saves and ends" in capsys.readouterr().out


def test_a_run_that_does_not_end_is_left_to_itself(monkeypatch, capsys) -> None:
    monkeypatch.setattr(demo, "SAVING", 0.2)
    with subprocess.Popen(["sleep", "60"]) as process:
        assert demo._stopped(process) == 130
        process.kill()
    assert f"process {process.pid} is still saving after 0.2 s" in capsys.readouterr().out


def test_a_step_that_ended_all_the_same_is_not_followed_by_the_next() -> None:
    with subprocess.Popen(["true"]) as process:
        assert demo._stopped(process) == 130
