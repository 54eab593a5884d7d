"""What benchmarks/convert_scale.py takes of a process that it watches."""

import os
import sys
import time

from benchmarks.convert_scale import watched

WORK = """
import subprocess, sys
held = b"x" * (64 << 20)
subprocess.run([sys.executable, "-c", "import time; time.sleep(0.5)"])
"""


def test_a_process_and_those_below_it_are_watched_apart(tmp_path):
    seconds, own, largest = watched([sys.executable, "-c", WORK], dict(os.environ), tmp_path)
    assert seconds > 0.5 and own > 67 > largest > 1


def test_one_is_killed_when_it_is_time(tmp_path):
    begun = time.monotonic()
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    watched(sleep, dict(os.environ), tmp_path, kill=lambda: time.monotonic() > begun + 0.5)
    assert time.monotonic() < begun + 30
