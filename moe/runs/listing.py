"""Many runs as a table."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from moe.errors import InputError
from moe.runs.frame import STATE_COLOURS
from moe.runs.reading import read_run
from moe.runs.scales import number
from moe.runs.summary import Summary, summary
from moe.units import clock, short


def list_runs(paths: list[Path]) -> tuple[list[Summary], list[str], list[str]]:
    """The runs, the one written last first; notes on them; what is wrong with those that cannot be read."""
    found: list[Summary] = []
    notes: list[str] = []
    faults: list[str] = []
    for path in paths:
        try:
            run = read_run(path)
        except InputError as error:
            faults.append(str(error))
            continue
        found.append(summary(run))
        notes += run.notes
    return sorted(found, key=lambda one: -one.updated), notes, faults


def table(runs: list[Summary], now: float) -> Table:
    """`now`: seconds since 1970."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    made.add_column("run", overflow="fold")
    made.add_column("state", no_wrap=True)
    for name in ("done", "tokens", "loss", "val", "saved", "written"):
        made.add_column(name, justify="right", no_wrap=True)
    for one in runs:
        made.add_row(
            one.folder,
            Text(one.state, style=STATE_COLOURS[one.state]),
            f"{100 * one.share:.0f}%" if one.share is not None else "-",
            short(one.tokens) if one.tokens else "-",
            number(one.loss) if one.loss is not None else "-",
            number(one.validation) if one.validation is not None else "-",
            f"{one.saved:,}" if one.saved is not None else "-",
            f"{clock(max(0.0, now - one.updated))} ago",
        )
    return made
