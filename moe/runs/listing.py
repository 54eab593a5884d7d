"""Many runs as a table.

Decisions:
- A row is a line. In a narrow terminal a path loses its beginning, then the table the columns that matter least.
"""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moe.common.errors import InputError
from moe.common.units import clock, short
from moe.runs.frame import STATE_COLOURS
from moe.runs.reading import read_run
from moe.runs.scales import number
from moe.runs.summary import NEEDED, Summary, summary
from moe.runs.text import shorten

FIRST_OUT = ("tokens", "saved", "val", "written", "done", "loss")  # where there is no room
LEAST_NAME = 24  # characters of a run's path, before columns are dropped for it


def list_runs(paths: list[Path]) -> tuple[list[Summary], list[str], list[str]]:
    """The runs, the one written last first; notes on them; what is wrong with those that cannot be read."""
    found: list[Summary] = []
    notes: list[str] = []
    errors: list[str] = []
    for path in paths:
        try:
            run = read_run(path, NEEDED)
        except InputError as error:
            errors.append(str(error))
            continue
        found.append(summary(run))
        notes += run.notes
    return sorted(found, key=lambda one: -one.updated), notes, errors


def _losses(one: Summary) -> str:
    """Of every validation set, with its name where it has one."""
    return ", ".join(f"{name} {number(values['loss'])}".strip() for name, values in one.validations.items())


def table(runs: list[Summary], now: float, console: Console) -> Table:
    """As wide as `console` at most; `now`: seconds since 1970."""
    columns = {
        "state": [one.state for one in runs],
        "done": [f"{100 * one.share:.0f}%" if one.share is not None else "-" for one in runs],
        "tokens": [short(one.tokens) if one.tokens else "-" for one in runs],
        "loss": [number(one.loss) if one.loss is not None else "-" for one in runs],
        "val": [_losses(one) or "-" for one in runs],
        "saved": [f"{one.saved:,}" if one.saved is not None else "-" for one in runs],
        "written": [f"{clock(max(0.0, now - one.updated))} ago" for one in runs],
    }
    longest = max(cell_len(one.folder) for one in runs)

    def room() -> int:
        return console.width - 2 - sum(2 + max(map(len, [name, *cells])) for name, cells in columns.items())

    for name in FIRST_OUT:
        if room() >= min(longest, LEAST_NAME):
            break
        del columns[name]
    dots = "…" if (console.encoding or "").lower().startswith("utf") else "..."
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("run", *columns):
        made.add_column(name, no_wrap=True, justify="left" if name in ("run", "state") else "right")
    for one, *cells in zip(runs, *columns.values(), strict=True):
        state = Text(cells[0], style=STATE_COLOURS[one.state])
        made.add_row(Text(shorten(one.folder, max(8, room()), dots)), state, *cells[1:])
    return made
