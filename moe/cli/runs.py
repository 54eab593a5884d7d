"""Lists all runs of a folder: state, progress, loss, last checkpoint, and what was changed in mid-run."""

from __future__ import annotations

import argparse
import json
import time

from moe.common.units import note, show

FOLDERS = ("checkpoints", "runs")  # where save_folder is by default, and the logs of runs that save on s3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="*", help="folders with runs, or runs (default: ./checkpoints and ./runs)")
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of a table")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from moe.common.errors import InputError
    from moe.runs.listing import list_runs, table
    from moe.runs.reading import find_runs

    paths = find_runs(args.folder or FOLDERS)
    if not paths:
        looked = " and ".join(map(str, args.folder or [f"./{folder}" for folder in FOLDERS]))
        raise InputError(
            f"no run (a folder with run.json) in {looked}; give the folder that holds them: moe runs FOLDER"
        )
    found, notes, errors = list_runs(paths)
    if args.json:
        show(json.dumps([each.to_json() for each in found], indent=1))
    elif found:
        console = Console(highlight=False, markup=False, emoji=False)
        console.print(table(found, time.time(), console))
        for line in [f"{each.folder}: changed {words}" for each in found for words in each.changed]:
            console.print(line)
    for line in notes:
        note(f"note: {line}")
    if errors:
        raise InputError("\n".join(errors))
    return 0
