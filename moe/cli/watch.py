"""Shows a run in the terminal: progress, curves, experts, checkpoints, alarms. It only reads files: start and stop it
at will, also for a run that is done or dead, or whose folder is not there yet. `q` or Ctrl+C leaves.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from moe.common.units import note

if TYPE_CHECKING:
    from rich.console import Console

    from moe.runs.reading import Run, RunReader

LINGER = 60.0  # seconds that a run which had ended before is looked at: it may just be being started again
Wait = Callable[[float], bool]  # waits so many seconds, less where a key is pressed; whether to continue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder, e.g. checkpoints/demo; in a terminal it may come later")
    parser.add_argument("--once", action="store_true", help="print one frame and end")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="how often to look (default: 2)")


def run(args: argparse.Namespace) -> int:
    """0 when the run has ended or the frame is printed; `q` and Ctrl+C leave at any time."""
    from rich.console import Console

    from moe.common.errors import InputError
    from moe.runs.frame import CURVES, frame
    from moe.runs.reading import RunReader

    if not 0 < args.every <= 86_400:
        raise InputError(f"--every ({args.every}) must be above 0 and at most 86,400 seconds, a day")
    reader = RunReader(args.run, [key for _, key in CURVES])
    console = Console(highlight=False, markup=False, emoji=False)
    if args.once or not console.is_terminal:
        console.print(frame(reader.read(), console))
        return 0
    with contextlib.suppress(KeyboardInterrupt), keys() as wait:
        if (found := first_look(reader, args.every, wait)) is None:
            return 0
        found = follow(reader, found, console, args.every, wait)
        console.print(frame(found, console))  # stays, where the live view leaves nothing
    return 0


@contextlib.contextmanager
def keys() -> Iterator[Wait]:
    """A wait that `q` ends. The terminal gives each key as it is pressed, until the block ends."""
    try:
        import termios
        import tty

        source = sys.stdin.fileno()
        before = termios.tcgetattr(source)
        if os.tcgetpgrp(source) != os.getpgrp():  # in the background: to touch the terminal would stop the process
            raise OSError
    except (ImportError, OSError, ValueError, AttributeError, termios.error):  # no terminal to type in
        yield _sleep
        return

    typing = select.poll()  # select() takes no descriptor above 1,023
    typing.register(source, select.POLLIN)

    def wait(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if typing.poll(1000 * left):
                typed = os.read(source, 64)
                if not typed or b"q" in typed.lower():  # nothing: the terminal has gone
                    return False
        return True

    try:
        tty.setcbreak(source, termios.TCSANOW)
        yield wait
    finally:
        termios.tcsetattr(source, termios.TCSANOW, before)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


def first_look(reader: RunReader, every: float, wait: Wait) -> Run | None:
    """The run as soon as its folder is there; None where the user did not wait for it.

    Raises:
        InputError: there is something, and it is no run folder.
    """
    reported = False
    while not is_there(reader.path):
        if not reported:
            note(f"{reader.path}: there is no such run yet; waiting for it (q leaves)")
            reported = True
        if not wait(every):
            return None
    return reader.read()


def is_there(path: Path) -> bool:
    """Whether there is anything to read: a folder is there, with more in it than a start puts there before run.json:
    its lock, W&B's folder, a checkpoint from s3.
    """
    if "://" in str(path) or str(path).startswith("s3:"):
        return True  # reported by who reads it
    try:
        return any(not one.name.startswith((".", "step-")) and one.name != "wandb" for one in path.iterdir())
    except NotADirectoryError:
        return True
    except OSError:
        return False


def follow(reader: RunReader, found: Run, console: Console, every: float, wait: Wait) -> Run:
    """The live view, until the run ends or the user leaves; returns the last look."""
    from rich.live import Live

    from moe.runs.frame import frame
    from moe.runs.reading import DONE, FAILED

    begun, alive = time.monotonic(), found.state not in (DONE, FAILED)
    live = Live(frame(found, console, waits=not alive), console=console, screen=True, auto_refresh=False)
    try:
        live.start()
        while found.state not in (DONE, FAILED) or (not alive and time.monotonic() - begun < LINGER):
            if not wait(every):
                break
            found = reader.read()
            alive = alive or found.state not in (DONE, FAILED)
            live.update(frame(found, console, waits=not alive), refresh=True)
    except KeyboardInterrupt:
        pass
    finally:
        live.stop()  # not `with`: that would leave the screen as it is when Ctrl+C comes during the first frame
    return found
