"""Starts of train.py, Composer's launcher and others in processes of their own, without the seconds of imports.

A start costs five to eight seconds of CPU, nearly all of it imports. `popen` has it forked from a process that has
imported the libraries (tests/start_server.py): one for each process of pytest, begun when it is first needed. The
child imports `moe` itself, is a child of pytest's process as every other, and with `composer -n` its ranks are
children of the launcher. It has its own arguments, variables, folder, streams, session, signal handlers and random
states.

What a forked start has not of a new process: a command line in /proc, a hash seed and addresses of its own, the memory
of its own imports (peaks in /proc are the server's; Python's collector passes these objects over), the order of
imports (libraries before `settle` and the signal handlers), a way to die while importing, and an interpreter that is
taken apart at its end. What is about these, and one start of each kind, is a new process:
`subprocess`, or `popen(..., new=True)`. So is every start with a variable that a library may read when it is imported:
one that differs from those of pytest's start, is not in READ_LATER, and was not set by the libraries or a run in
pytest's process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import inspect
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.start_server import LARGEST, program_of

READ_LATER = re.compile(
    "CHAOS_.*|(LOCAL_)?RANK|(LOCAL_)?WORLD_SIZE|NODE_RANK|MASTER_.*|TMPDIR|PYTHONPATH|PYTHONUNBUFFERED|PYTEST_.*|"
    "AWS_.*|S3_ENDPOINT_URL|TORCHINDUCTOR_CACHE_DIR|TORCH_NCCL_ASYNC_ERROR_HANDLING|_|OLDPWD|PWD|SHLVL"
)
OF_RUNS = {  # what a run in this process sets, for the tracker of shared memory and for cuBLAS
    "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
FIRST = dict(os.environ)  # tests/conftest.py has set its own and imports this
_lock = threading.Lock()


def popen(command: Sequence[str | Path], *, new: bool = False, **settings: Any) -> subprocess.Popen:
    """subprocess.Popen: forked where that shows the same, else (and with `new`) a new process."""
    words = [os.fspath(word) for word in command]
    kind = subprocess.Popen if new or not _can_fork(words, settings.get("env")) else _Forked
    return kind(words, **settings)


def run(command: Sequence[str | Path], *, timeout: float | None = None, **settings: Any) -> subprocess.CompletedProcess:
    """subprocess.run with both outputs captured, as `popen` starts it."""
    with popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _can_fork(command: list[str], env: dict[str, str] | None) -> bool:
    if sys.platform != "linux" or program_of(command) is None:
        return False
    env = dict(os.environ) if env is None else env
    differ = {name for name in {*env, *FIRST} if env.get(name) != FIRST.get(name) and not READ_LATER.fullmatch(name)}
    return not differ or all(env.get(name) == {**_server()[1], **OF_RUNS}.get(name, "?") for name in differ)


class _Forked(subprocess.Popen):
    def _execute_child(self, *given: Any) -> None:
        call = inspect.signature(super()._execute_child).bind(*given).arguments
        assert not call["shell"] and call["preexec_fn"] is None and not call["pass_fds"]
        ends = zip((call["p2cread"], call["c2pwrite"], call["errwrite"]), range(3), strict=True)
        request = {
            "program": program_of(call["args"]),
            "cwd": os.path.abspath(call["cwd"] or os.getcwd()),
            "env": dict(os.environ if call["env"] is None else call["env"]),
            "session": call["start_new_session"],
            "parent": os.getpid(),
        }
        data = json.dumps(request).encode()
        assert len(data) < LARGEST
        with _lock, _subreaper():
            server, _ = _server()
            socket.send_fds(server, [data], [own if end == -1 else end for end, own in ends])
            pid, forked = server.recv(64), server.recv(64)
        assert pid and forked, "the process that forks starts has died"
        self.pid = int(pid)
        self._child_created = True
        self._close_pipe_fds(
            *(call[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite")), call["errread"], call["errwrite"]
        )


@contextlib.contextmanager
def _subreaper() -> Iterator[None]:
    """Orphans become children of this process."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    try:
        yield
    finally:
        prctl(SUBREAPER, 0, 0, 0, 0)


@functools.cache
def _server() -> tuple[socket.socket, dict[str, str]]:
    """Its channel, and the variables that the libraries set."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, str(Path(__file__).with_name("start_server.py")), str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=FIRST, stdin=subprocess.DEVNULL)
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait(10)

    atexit.register(end)
    return ours, json.loads(ours.recv(LARGEST))
