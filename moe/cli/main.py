"""The console script `moe`: one file per command, imported only when it is called."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import platform
import sys
from importlib import import_module, metadata
from shlex import quote

from moe import __version__
from moe.common.environment import settle
from moe.common.errors import InputError, RunFailed
from moe.common.parser import Parser
from moe.common.units import drop, flush, note, ready, show

COMMANDS = {
    "demo": "make text, tokenizer and shards from what is on this machine, and train a small MoE on them",
    "new": "write a yaml for so many tokens, as large as a card and hours allow",
    "yaml": "write one of the yamls to begin with into a file of your own",
    "tokenizer": "train a tokenizer on text",
    "convert": "tokenise text into shards",
    "train": "train what a yaml says, or resume where the run stopped",
    "launch": "start the ranks of this machine, one of several or the only one, as `composer -n N train.py` does",
    "export": "write a checkpoint as a Hugging Face folder, or make one of such a folder",
    "estimate": "parameters, memory, time, cost and disk of a run, from its yaml alone",
    "check": "check all that a run needs: machine, data, folders, services, one step, a checkpoint",
    "inspect": "show and verify a converted dataset",
    "profile": "show where the time and memory of a training step go",
    "generate": "continue prompts with a trained checkpoint",
    "watch": "a run in the terminal, live: progress, curves, experts, alarms",
    "runs": "all runs of a folder: state, tokens, loss, last checkpoint",
    "report": "one page with the curves and all the facts of a run, or of several side by side",
    "diff": "what differs between two runs: config, data, versions",
    "eval": "measure a trained checkpoint: loss on converted data, or lm-eval's tasks",
}

JOBS = {"tokenizer", "convert", "train", "export"}  # as in train.py and convert/*.py: own exit codes
PACKAGES = ("torch", "mosaicml", "mosaicml-streaming", "transformers")  # that --version tells of
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Version(argparse.Action):
    """--version: prints moe's version, Python's, and those of what trains."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:
        found = []
        for package in PACKAGES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found.append(f"{package} {metadata.version(package)}")
        show(f"moe {__version__} (Python {platform.python_version()}, {', '.join(found)})")
        parser.exit()


def main(argv: list[str] | None = None) -> int:
    """Runs `moe COMMAND ...`; returns the exit code (2 for invalid input)."""
    ready()
    argv = sys.argv[1:] if argv is None else argv
    listed = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="moe",
        description="Pretrain Mixture-of-Experts language models.",
        epilog=f"commands:\n{listed}\n\nmoe COMMAND --help shows its options",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the versions and exit")
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help=", ".join(COMMANDS))
    if not argv:
        note(parser.format_help())
        return 2
    if argv[0] not in COMMANDS and not argv[0].startswith("-"):
        near = difflib.get_close_matches(argv[0].lower(), COMMANDS, n=1)
        fix = f"did you mean moe {near[0]}?" if near else f"there are: {', '.join(COMMANDS)}"
        note(f"error: there is no command moe {quote(argv[0][:40])}; {fix}")
        return 2
    name = parser.parse_args(argv[:1]).command
    command = import_module(f"moe.cli.{name}")
    parser = Parser(prog=f"moe {name}", description=command.__doc__)
    command.add_arguments(parser)
    if name in JOBS:  # a closed pipe or a full disk means another thing there
        return command.run(parser.parse_intermixed_args(argv[1:]))
    try:
        settle()
        code = command.run(parser.parse_intermixed_args(argv[1:]))  # key=value may stand after a flag
        flush()
        return code
    except InputError as error:
        note(f"error: {error}")
        return 2
    except RunFailed as error:
        note(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `moe ... | head` has read enough
        drop("stdout")
        return 0
    except OSError as error:
        if error.filename is not None or error.errno not in DISK_ERRNOS:
            raise
        drop("stdout")
        note(f"error: the output cannot be written: {error.strerror}; free space, or write elsewhere")
        return 2


if __name__ == "__main__":
    sys.exit(main())
