"""A process of benchmarks/step_worker.py that takes steps when asked to, and waits while another works."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class TooSlow(SystemExit):
    """A competitor that did not answer within its limit; it is ended."""


class Competitor:
    """limit: seconds within which each answer has to come, the first one with all that is compiled; None: no limit.

    Raises:
        TooSlow: it did not.
        SystemExit: it ended early.
    """

    def __init__(self, spec: dict[str, Any], python: str = sys.executable, limit: float | None = None) -> None:
        command = [python, str(ROOT / "benchmarks" / "step_worker.py"), json.dumps(spec)]
        # where there is no network, packages lie in a folder that the caller names; they are its own Python's
        given = os.environ.get("PYTHONPATH") if python == sys.executable else None
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), given]))}
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - as long as the process
        pipe = subprocess.PIPE
        self.kind = f"step_worker.py ({spec['kind']})"
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=env)
        self.limit = limit
        self._said = b""  # of the line that has not ended
        self.note = self._answer()

    def _lines(self) -> Iterator[bytes]:
        """As they come, from the pipe itself: what a file object has read ahead, select does not see."""
        assert self.process.stdout is not None
        deadline = None if self.limit is None else time.monotonic() + self.limit
        while True:
            line, end, rest = self._said.partition(b"\n")
            if end:
                self._said = rest
                yield line
                continue
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                self._end()
                raise TooSlow(f"error: {self.kind} was ended: no answer within {self.limit:.0f} s")
            found = os.read(self.process.stdout.fileno(), 2**16)
            if not found:
                return
            self._said += found

    def alive(self) -> bool:
        return self.process.poll() is None

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answer(self) -> Any:
        for line in self._lines():
            if line.startswith(b"@"):
                return json.loads(line[1:])
        self.process.wait()
        self.errors.seek(0)
        said = self.errors.read()
        print(said, file=sys.stderr)
        lines = said.strip().splitlines() or [""]
        last = next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception): ", line)), lines[-1])
        raise SystemExit(f"error: {self.kind} ended early: {last}")

    def seconds(self, turn: float) -> float:
        """Mean time of a step, of as many as take at least `turn` seconds."""
        assert self.process.stdin is not None
        taken: list[float] = []
        while sum(taken) < turn:
            with contextlib.suppress(OSError):  # it has ended; the answer says so
                self.process.stdin.write("step\n")
                self.process.stdin.flush()
            taken.append(self._answer())
        return statistics.mean(taken)

    def stop(self) -> int | None:
        """As `close`, also of one that has failed: then there is no peak."""
        try:
            return self.close()
        except (SystemExit, OSError):
            self._end()
            return None

    def close(self) -> int:
        """Peak memory in bytes."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        peak = self._answer()
        self.process.wait()
        return peak
