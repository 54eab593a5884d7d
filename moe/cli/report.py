"""Writes what a run was as one HTML page, which needs nothing beside it, and a PNG of its curves."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

from moe.common.paths import local_path, refuse_irregular
from moe.common.units import clean_line, note, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder, e.g. checkpoints/demo; it may still be running")
    parser.add_argument("--compare", nargs="+", default=[], metavar="RUN", help="runs to put beside it")
    parser.add_argument("--out", help="the page (default: report.html in the run's folder)")


def run(args: argparse.Namespace) -> int:
    from moe.common.errors import InputError, library_errors
    from moe.runs.compare import labels
    from moe.runs.page import report_page
    from moe.runs.png import report_png
    from moe.runs.reading import read_run
    from moe.runs.report import Report

    if args.out is not None:
        args.out = local_path(args.out, "--out")
    if args.out is not None and args.out.suffix not in (".html", ".htm"):
        raise InputError(f"--out ({args.out}) must end in .html; the picture goes beside it as .png")
    # Both go into the run's folder: the current folder may hold the report of another run.
    # Both are made before anything is written, and are written aside: a full disk leaves an earlier report as it was.
    runs = labels([read_run(path) for path in (args.run, *args.compare)])
    for line in [line for run in runs.values() for line in run.notes]:
        note(f"note: {line}")
    out = args.out or next(iter(runs.values())).path / "report.html"
    _refuse_foreign(out)
    report = Report.of(runs)
    files = {out: report_page(report).encode()}
    with library_errors("matplotlib", f"{out.with_suffix('.png').name}"):
        picture = report_png(report)
    if picture is not None:
        files[out.with_suffix(".png")] = picture
    for path, content in files.items():
        try:
            _replace(path, content)
        except OSError as error:
            cause = error.strerror or error
            raise InputError(
                f"{clean_line(str(path))} cannot be written ({cause}); make room or choose another --out"
            ) from None
    show(
        clean_line(" and ".join(map(str, files)))
        + ("" if picture else f"; {next(iter(runs.values())).no_rows}, so no picture")
    )
    return 0


def _refuse_foreign(out: Path) -> None:
    """Raises InputError where the page or the picture would replace what no report made."""
    from moe.common.errors import InputError
    from moe.runs.page import MADE
    from moe.runs.png import SOFTWARE

    for path, mark in ((out, MADE), (out.with_suffix(".png"), SOFTWARE)):
        try:
            if not os.path.lexists(path):
                continue
            refuse_irregular(path)
            with open(path, "rb") as file:
                start = file.read(4096)
        except OSError as error:
            raise InputError(f"{path} cannot be replaced ({error.strerror}); choose another --out") from None
        if mark.encode() not in start:
            raise InputError(f"{path} is there and was not made by moe report; move it, or choose another --out")


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
