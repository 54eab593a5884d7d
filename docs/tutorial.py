"""Runs the commands of docs/tutorial.md and writes what they print behind them: `make tutorial`.

- The page is its own source: in a block marked `console`, a line that begins with `$ ` is a command, the others are
  what it printed. So no command of the page can differ from what was run.
- `# Ctrl+C at step N` behind a command: it gets SIGINT when it has printed that step, and must end with 75; all others
  must end with 0.
- Of the lines that only say how far a slow step is, none is kept: they are as many as the machine is busy.
- Everything happens in a new folder. Its path, and the home folder's, are written as `~/tutorial` and `~`.
- `--tiny` (`make try-tutorial`): the same commands with smaller numbers, and nothing is written.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).with_name("tutorial.md")
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.M | re.S)
STOP = re.compile(r"# Ctrl\+C at step (\d+)")
FIRST, LAST = 18, 7  # lines of a longer output that are kept
WIDTH = 118  # characters of a line
TINY = {  # each has to be found in the page
    "250000tok": "8ba",
    "d_model: 128": "d_model: 32",
    "n_layers: 2": "n_layers: 1",
    "# Ctrl+C at step 30": "log_interval=1ba # Ctrl+C at step 3",
    "--vocab-size 2048": "--vocab-size 300",
    "--max-new-tokens 60": "--max-new-tokens 4",
}


class Failed(Exception):
    """A command ended with another code than the page says."""


def commands(page: str) -> list[str]:
    """All commands of the page, in order."""
    return [line[2:] for block in BLOCK.findall(page) for line in block.splitlines() if line.startswith("$ ")]


def smaller(command: str) -> str:
    for plain, small in TINY.items():
        command = command.replace(plain, small)
    return command


def run(command: str, folder: Path) -> list[str]:
    """What `command` prints in `folder`, both streams together.

    Raises:
        Failed: it ended with another code than 0, or 75 where it is interrupted.
    """
    stop = STOP.search(command)
    bin_folder = str(Path(sys.executable).parent)
    threads = str(os.cpu_count() or 1)
    environment = {
        "OMP_NUM_THREADS": threads,
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        shlex.split(command, comments=True),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines, sent = [], False
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        reached = re.match(r"step (\d+)/", line)
        if stop and reached and int(reached[1]) >= int(stop[1]) and not sent:
            process.send_signal(signal.SIGINT)
            lines.append("^C")
            sent = True
    if process.wait() != (75 if stop else 0):
        raise Failed(f"{command}: exit code {process.returncode}\n" + "\n".join(lines))
    return lines


def shown(lines: list[str], folder: Path) -> Iterator[str]:
    """The output as the page has it: cut in its middle, without this machine's paths."""
    lines = "\n".join(line for line in lines if not line.startswith("... in step ")).strip("\n").splitlines()
    if len(lines) > FIRST + LAST + 1:
        lines = [*lines[:FIRST], "...", *lines[-LAST:]]
    for line in lines:
        plain = line.replace(str(folder), "~/tutorial").replace(str(Path.home()), "~").rstrip()
        yield plain if len(plain) <= WIDTH else plain[: WIDTH - 4] + " ..."


def make(page: str, folder: Path) -> str:
    """The page, its commands run anew in `folder`."""

    def block(match: re.Match[str]) -> str:
        lines = []
        for command in [line[2:] for line in match[0].splitlines() if line.startswith("$ ")]:
            print("$", command, flush=True)
            lines += [f"$ {command}", *shown(run(command, folder), folder)]
        return "\n".join(lines) + "\n"

    return BLOCK.sub(block, page)


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        if "--tiny" in sys.argv:
            for command in commands(page):
                print("$", command, flush=True)
                run(smaller(command), Path(folder))
            return
        page = make(page, Path(folder))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
