"""Shows a run in the terminal: progress, curves, experts, checkpoints, alarms. It only reads files: start and stop it
at will, also for a run that is done or dead.
"""

from __future__ import annotations

import argparse
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder, e.g. checkpoints/demo")
    parser.add_argument("--once", action="store_true", help="print one frame and end")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="how often to look (default: 2)")


def run(args: argparse.Namespace) -> int:
    """0 when the run has ended or the frame is printed; Ctrl+C leaves at any time."""
    from rich.console import Console
    from rich.live import Live

    from moe.errors import InputError
    from moe.runs.frame import frame
    from moe.runs.reading import DONE, FAILED, RunReader

    if not args.every > 0:
        raise InputError(f"--every ({args.every}) must be above 0")
    reader = RunReader(args.run)
    console = Console(highlight=False, markup=False, emoji=False)
    found = reader.read()
    if not args.once and console.is_terminal and found.state not in (DONE, FAILED):
        live = Live(frame(found, console), console=console, screen=True, auto_refresh=False)
        try:
            live.start()
            while found.state not in (DONE, FAILED):
                time.sleep(args.every)
                found = reader.read()
                live.update(frame(found, console), refresh=True)
        except KeyboardInterrupt:
            pass
        finally:
            live.stop()  # not `with`: that would leave the screen as it is when Ctrl+C comes during the first frame
    console.print(frame(found, console))  # stays, where the live view leaves nothing
    return 0
