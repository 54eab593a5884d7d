"""Shows what differs between two runs: their config, the data they read, the versions they ran with."""

from __future__ import annotations

import argparse

from moe.common.units import note, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder, e.g. checkpoints/demo")
    parser.add_argument("other", help="the run to compare it with")


def run(args: argparse.Namespace) -> int:
    from moe.runs.compare import differences
    from moe.runs.reading import read_run
    from moe.runs.summary import NEEDED

    runs = [read_run(path, NEEDED) for path in (args.run, args.other)]  # nothing of their metrics is shown
    for line in [line for run in runs for line in run.notes]:
        note(f"note: {line}")
    for section, table in differences(runs).items():
        missing = [run.folder for run in runs if not (run.config if section == "config" else run.manifest)]
        if missing:
            source = "config.yaml" if section == "config" else "checkpoint that could tell"
            show(f"{section}: no {source} in {' and '.join(missing)}")
            continue
        show(f"{section}: {len(table)} differ" if table else f"{section}: the same")
        width = max(map(len, table), default=0)
        for key, (here, there) in table.items():
            show(f"  {key:<{width}}  {here}  ->  {there}")
    return 0
