"""What the end-to-end tests of training share: starts of the real scripts, and the config they train.

Starts are forked from a process that has imported Composer (tests/starts.py), and one of each launcher is new.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

from moe.cli.train import main
from tests import starts
from tests.chaos.kills import session_members
from tests.tiny import tiny_config, write_config

ROOT = Path(__file__).resolve().parents[2]
COMPOSER = str(Path(sys.executable).with_name("composer"))
TRAIN = str(ROOT / "train.py")
TRACED = str(ROOT / "tests/chaos/traced.py")

# An epoch and a half, so that runs cross an epoch's end; loader workers; dropout; enough steps to be stopped in.
STEPS = {"max_duration": "150ba", "scheduler": {"t_warmup": "10ba"}, "global_train_batch_size": 16}
OFTEN = {"num_workers": 1, "save_interval": "15ba", "eval_interval": "50ba"}


def make_config(tiny: Path, folder: Path) -> Path:
    """A yaml in `folder`; its runs are saved beside it, each in a folder of its name."""
    settings = tiny_config(tiny, **STEPS, **OFTEN, save_folder=str(folder / "${run_name}"))
    return write_config(folder / "c.yaml", settings)


def start(command: list[str], log: Path, *, new: bool = False, **env: str) -> subprocess.Popen:
    """A rank that dies in C leaves its stacks in the log and its core beside it."""
    if new:
        command = ["bash", "-c", 'ulimit -c hard; exec "$0" "$@"', *command]
    with open(log, "w") as file:
        return starts.popen(
            command,
            new=new,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **env},
            cwd=log.parent,
        )


def traced(folder: Path, **env: str) -> dict[str, str]:
    """What tests/chaos/traced.py needs to know."""
    return {
        "CHAOS_TRACE": str(folder / "trace"),
        "CHAOS_LIFE": "1",
        "CHAOS_SLOW": "0",
        "PYTHONPATH": str(ROOT),
        **env,
    }


def wait_for(text: str, log: Path, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while text not in log.read_text():
        assert process.poll() is None, f"ended before {text!r}:\n{log.read_text()}"
        assert time.monotonic() < end, f"no {text!r} in {seconds} s:\n{log.read_text()}"
        time.sleep(0.01)


def nobody_left(process: subprocess.Popen) -> None:
    """Python's tracker of shared memory ends a moment after the process."""
    end = time.monotonic() + 20
    while session_members(process.pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def finish(process: subprocess.Popen, log: Path, code: int = 0, seconds: float = 240) -> str:
    assert process.wait(seconds) == code, log.read_text()
    return log.read_text()


def here(*command: str) -> str:
    """What a start in this process prints; it ends with 0."""
    with redirect_stdout(io.StringIO()) as out:
        assert main(list(command)) == 0
    return out.getvalue()
