"""The process behind tests/starts.py: imports the libraries once, then forks one child for each start it is asked for.

Run as a script, by path: neither `moe` nor `tests` is imported here, so that each child imports these itself.
It first tells the variables that the libraries have set. A request is one JSON object with the child's stdin, stdout
and stderr; the answer its process id. The child is forked twice, so that it becomes the child of the process that
asked, which is a subreaper meanwhile.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import io
import json
import logging
import multiprocessing.process
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from importlib.machinery import SourceFileLoader
from typing import Any, NoReturn

LARGEST = 1 << 18  # bytes of a request
HANDLERS = {number: signal.getsignal(number) for number in signal.Signals}  # importing Composer changes them
PATH = [path for path in sys.path[1:] if path not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
IDLE_THREADS = ("jemalloc_bg_thd",)  # PyArrow's allocator makes it anew in a forked process
kept: list[Any] = []  # replaced streams: closing them would close descriptors


def preload() -> None:
    import composer.cli.launcher  # noqa: F401
    import streaming  # noqa: F401
    import transformers  # noqa: F401


def threads() -> list[str]:
    """Names of the threads of this process beside the first that a fork would lose."""
    found = []
    for task in os.listdir("/proc/self/task"):
        if int(task) != os.getpid():
            with open(f"/proc/self/task/{task}/comm") as file:
                found.append(file.read().strip())
    return [name for name in found if name not in IDLE_THREADS]


def program_of(command: list[str]) -> list[str] | None:
    """[-m NAME, -c CODE or PATH, *arguments] of a command of this Python without other flags; None of others."""
    if command[0] != sys.executable:
        try:
            with open(command[0], "rb") as file:
                first = file.readline().decode(errors="replace").strip()
        except OSError:
            return None
        ours = os.path.realpath(os.path.dirname(sys.executable))
        return command if first[:2] == "#!" and os.path.realpath(os.path.dirname(first[2:])) == ours else None
    if len(command) < 2 or (command[1][:1] == "-" and command[1] not in ("-m", "-c")):
        return None
    return command[1:]


def serve(channel: socket.socket) -> tuple[dict, list[int]]:
    """Forks; returns in a child, never here: the request and the descriptors it came with."""
    while True:
        data, descriptors, *_ = socket.recv_fds(channel, LARGEST, 3)
        if not data:
            os._exit(0)
        request = json.loads(data)
        middle = os.fork()
        if middle == 0:
            if pid := os.fork():
                channel.send(str(pid).encode())
                os._exit(0)
            while os.getppid() != request["parent"]:
                time.sleep(0.001)
            return request, descriptors
        os.waitpid(middle, 0)
        channel.send(b"forked")
        for descriptor in descriptors:
            os.close(descriptor)


def settle(
    environment: dict[str, str], descriptors: list[int], folder: str | None, handlers: dict, *, session: bool
) -> None:
    """Gives this forked process what a new one has of its own."""
    if session:
        os.setsid()
    for target, descriptor in enumerate(descriptors):
        if descriptor not in (-1, target):
            os.dup2(descriptor, target)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    if folder is not None:
        os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    tempfile.tempdir = None
    multiprocessing.process.ORIGINAL_DIR = os.getcwd()
    logging.root.handlers.clear()
    sys.modules["numpy"].random.seed()
    sys.modules["torch"].default_generator.seed()
    for name, target, mode in (("stdin", 0, "rb"), ("stdout", 1, "wb"), ("stderr", 2, "wb")):
        old, through = getattr(sys, name), target > 0 and bool(environment.get("PYTHONUNBUFFERED"))
        raw = os.fdopen(target, mode, 0 if through else -1, closefd=False)
        lines = not through and (target == 2 or os.isatty(target))
        new = io.TextIOWrapper(raw, old.encoding, old.errors, "\n" if target else None, lines, through)
        kept.append((old, getattr(sys, f"__{name}__")))
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def run(program: list[str]) -> NoReturn:
    """Runs it to its end, as moe.train.run.end ends: the interpreter is not taken apart, which takes seconds of CPU."""
    code = 1
    try:
        execute(program)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def execute(program: list[str]) -> None:
    """Executes it as the interpreter does its command line."""
    sys.orig_argv[:] = [sys.executable, *program]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if program[0] == "-m":
        sys.argv[:] = ["-m", *program[2:]]
        sys.path[:] = [os.getcwd(), *own, *PATH]
        runpy._run_module_as_main(program[1])
    elif program[0] == "-c":
        sys.argv[:] = ["-c", *program[2:]]
        sys.path[:] = ["", *own, *PATH]
        exec(compile(program[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv[:] = program
        sys.path[:] = [os.path.dirname(os.path.realpath(program[0])), *own, *PATH]
        main.__file__ = program[0]
        main.__loader__ = SourceFileLoader("__main__", program[0])
        with open(program[0], "rb") as file:
            exec(compile(file.read(), program[0], "exec"), main.__dict__)


class Rank(subprocess.Popen):
    """What Composer's launcher starts, where the launcher was forked: forked from it, and its child as always."""

    def _execute_child(self, *given: Any) -> None:
        call = inspect.signature(super()._execute_child).bind(*given).arguments
        program = None if call["shell"] or isinstance(call["args"], str) else program_of(call["args"])
        if program is None or threads():
            return super()._execute_child(*given)
        sys.stdout.flush()
        sys.stderr.flush()
        environment = dict(os.environ if call["env"] is None else call["env"])
        self.pid = os.fork()
        if self.pid:
            self._child_created = True
            return None
        ends = [call["p2cread"], call["c2pwrite"], call["errwrite"]]
        settle(environment, ends, call["cwd"], HANDLERS, session=call["start_new_session"])
        run(program)


def main() -> None:
    before = dict(os.environ)
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))  # what dies in C leaves its core
    preload()
    gc.freeze()  # or each child's collection would look through half a million objects, and copy their pages
    assert not threads(), f"a fork would lose these threads: {threads()}"
    found = {name: value for name, value in os.environ.items() if before.get(name) != value}
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.send(json.dumps(found).encode())
    request, descriptors = serve(channel)
    launches = os.path.basename(request["program"][0]) == "composer"
    handlers = {} if launches else HANDLERS  # the launcher imports Composer first of all
    settle({**found, **request["env"]}, descriptors, request["cwd"], handlers, session=request["session"])
    if launches:
        subprocess.Popen = Rank
    run(request["program"])


if __name__ == "__main__":
    main()
