"""Writes what a run was as one HTML page, which needs nothing beside it, and a PNG of its curves."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder, e.g. checkpoints/demo; it may still be running")
    parser.add_argument("--compare", nargs="+", default=[], metavar="RUN", help="runs to put beside it")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")


def run(args: argparse.Namespace) -> int:
    from moe.errors import InputError
    from moe.runs.compare import labels
    from moe.runs.page import report_page
    from moe.runs.png import write_png
    from moe.runs.reading import read_run

    if args.out.suffix not in (".html", ".htm"):
        raise InputError(f"--out ({args.out}) must end in .html; the picture goes beside it as .png")
    runs = labels([read_run(path) for path in (args.run, *args.compare)])
    picture = args.out.with_suffix(".png")
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report_page(runs), encoding="utf-8")
        pictured = write_png(picture, runs)
    except OSError as error:
        raise InputError(f"--out ({args.out}) cannot be written: {error.strerror or error}") from None
    print(
        f"{args.out}"
        + (f" and {picture}" if pictured else "; no row of metrics is written yet, so there is no picture")
    )
    return 0
