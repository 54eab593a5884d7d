"""A signal ends what one call of a library does for minutes."""

import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from moe.common.signals import ended_by_signals
from moe.data.write.merge import ShardSequence
from tests.conftest import ROOT

MERGES = """
import sys, time
import tokenizers
from moe.data.write.flags import exit_code
from moe.data.text.train_tokenizer import train_tokenizer
from ctypes import CDLL
from collections import deque
from itertools import repeat

class Slow:
    def __init__(self, model):
        pass

    def train_from_iterator(self, batches, trainer):
        read = list(batches)
        print(len(read), flush=True)
        deque(map(CDLL(None).usleep, repeat(100_000, 300)), maxlen=0)  # 30 s, as merging: no handler of Python runs

tokenizers.Tokenizer = Slow
arguments = {"dataset": sys.argv[1], "out": sys.argv[2], "vocab_size": 300}
sys.exit(exit_code(lambda: train_tokenizer(**arguments), sys.argv[2]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_the_training_of_a_tokenizer(tmp_path, number, code):
    """B14: acted on when all was merged, 38 s later for 10 MB of text; a scheduler kills first."""
    (tmp_path / "a.txt").write_text("some words\n\nand others\n")
    command = [sys.executable, "-c", MERGES, str(tmp_path / "a.txt"), str(tmp_path / "new/out")]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    time.sleep(0.2)
    process.send_signal(number)
    sent = time.monotonic()
    _, told = process.communicate(timeout=60)
    assert process.returncode == code and time.monotonic() - sent < 5
    assert told == "stopped; nothing of the tokenizer is kept, the same command starts again\n"
    assert not (tmp_path / "new").exists()


def test_afterwards_signals_go_where_they_went_before():
    """B14: so too where another thread asks, whose signals they are not."""

    def inside() -> None:
        with ended_by_signals("stopped"):
            names.append({thread.name for thread in threading.enumerate()} >= {"signals"})

    names: list[bool] = []
    before = signal.set_wakeup_fd(-1)
    try:
        inside()
        assert signal.set_wakeup_fd(-1) == -1
        other = threading.Thread(target=inside)
        other.start()
        other.join()
    finally:
        signal.set_wakeup_fd(before)
    assert names[0] and len(names) == 2


class Slow:
    """A folder on a bucket."""

    def __init__(self) -> None:
        self.copied: list[str] = []

    def __truediv__(self, name: str) -> "Slow":
        return self

    def copy(self, source: object, name: str, own_name: str) -> None:
        time.sleep(0.05)
        self.copied.append(own_name)


def test_a_signal_while_shards_are_copied_waits_for_those_alone_that_are_begun():
    """B14: on a bucket a copy takes a second, and all of thousands were waited for after SIGTERM."""
    folder = Slow()
    store = SimpleNamespace(size=lambda name: 5, folder=folder)

    def shards():
        yield from ((store, "unit", f"{number}", {"bytes": 5}) for number in range(400))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ShardSequence(folder, "train", None, SimpleNamespace(resumed=False)).copy(shards())
    assert len(folder.copied) < 100
