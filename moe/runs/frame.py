"""One frame of `moe watch`: what a run is doing, in at most the terminal's width, with and without colour.

Decisions:
- Curves are drawn in block characters, in ASCII where the terminal's encoding has none. A cell of the experts' load is
  a shade as well as a colour: the frame can be read in a log file.
"""

from __future__ import annotations

import math
import time
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from moe.common.units import clock, short
from moe.runs.changes import by_restart, changes
from moe.runs.columns import is_number
from moe.runs.interruptions import RATE, interruptions, parse_stamp
from moe.runs.reading import DONE, FAILED, INTERRUPTED, RUNNING, UNSURE, Run
from moe.runs.scales import number
from moe.runs.summary import Summary, summary
from moe.runs.task_scores import last_scores

BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
SHADES, PLAIN_SHADES = "·░▒▓█", ".:-=#"
LOADS = (0.25, 0.7, 1.43, 2.5)  # of the fair share: below is idle, ..., above is overloaded
LOAD_COLOURS = ("blue", "cyan", "green", "yellow", "red")
STATE_COLOURS = {RUNNING: "blue", UNSURE: "blue", INTERRUPTED: "yellow", DONE: "green", FAILED: "red"}
STILL = 120.0  # seconds without news after which the frame says so
LABEL, VALUE = 12, 10  # width of the first two columns, the second wider for a long step
LEAST_CURVE = 10
MOST_LAYERS, MOST_ALARMS, MOST_CHANGES = 16, 3, 3
CURVES = (("loss", "train/loss"), ("grad norm", "optim/grad_norm"), ("tokens/s", RATE))


def frame(run: Run, console: Console, now: float | None = None, waits: bool = False) -> RenderableType:
    """`now`: seconds since 1970. `waits`: the run has ended, and is looked at in case it is started again."""
    now = time.time() if now is None else now
    one = summary(run)
    plain = not (console.encoding or "").lower().startswith("utf")
    width = min(console.width, 120)
    value = max(VALUE, len(f"step {run.step:,}"))
    room = width - LABEL - value - 4
    rows = Table.grid(padding=(0, 1, 0, 0))
    rows.add_column(width=LABEL, style="dim")
    rows.add_column(width=value, justify="right", no_wrap=True)
    rows.add_column(overflow="fold", max_width=room)
    _curves(rows, run, room, plain)
    if scores := last_scores(run):
        rows.add_row("tasks", "", Text(scores))
    rows.add_row("checkpoint", *_checkpoint(run, now))
    _interrupted(rows, run)
    _changed(rows, run)
    _alarms(rows, run)
    _notes(rows, run)
    lines = console.height - len(rows.rows) - 6 if console.is_terminal else MOST_LAYERS
    _experts(rows, run, room, max(1, min(MOST_LAYERS, lines)), plain)
    return Group(_title(run, now, width, waits), _progress(one, width, plain), "", rows)


def _title(run: Run, now: float, width: int, waits: bool) -> Text:
    title = Text(no_wrap=False)
    title.append(run.name, style="bold")
    title.append(f"  {run.state}", style=f"bold {STATE_COLOURS[run.state]}")
    age = max(0.0, now - run.updated)
    place = f"  pid {run.record.get('pid')} on {run.record['host']}" if run.record.get("host") else ""
    written = f"last written {clock(age)} ago"
    title.append("  " if cell_len(title.plain + written + place) + 2 <= width else "\n")
    title.append(written, style="yellow" if run.state == RUNNING and age > STILL else "dim")
    title.append(place, style="dim")
    if run.state == INTERRUPTED:
        title.append("\nrun the same command again to resume", style="dim")
    if waits:
        title.append("\nlooking whether it is started again; q leaves", style="dim")
    return title


def _progress(one: Summary, width: int, plain: bool) -> Text:
    if one.share is None:
        return Text("no config.yaml yet: the run is starting", style="dim")
    words = f" {100 * one.share:3.0f}%  {short(one.tokens or 0)}/{short(one.total_tokens or 0)} tok"
    words += f"  step {one.step:,}/{one.total_steps:,}"
    if one.seconds_left is not None and one.state == RUNNING:
        words += f"  {clock(one.seconds_left)} left"
    size = max(8, min(50, width - len(words)))
    full = round(size * min(1.0, one.share))
    text = Text("#" * full if plain else "━" * full, style="green" if one.state == DONE else "blue")
    text.append(("." if plain else "╌") * (size - full), style="dim")
    return text.append(words, style="default")


def _curves(rows: Table, run: Run, room: int, plain: bool) -> None:
    """Each with its range, which is dropped where it leaves the curve no room."""
    keys = [*CURVES, *((f"val {split}".strip(), key) for split, key in run.validation().items())]
    series = {label: [value for _, value in run.series(key)] for label, key in keys}
    spans = {label: f"  {number(min(of))} to {number(max(of))}" for label, of in series.items() if of}
    size = room - max(map(len, spans.values()), default=0)
    if size < LEAST_CURVE:
        size, spans = room, {}
    for label, values in series.items():
        line = Text((sparkline(values, size, plain) if values else "").ljust(size), style="cyan", no_wrap=True)
        line.append(spans.get(label, ""), style="dim")
        rows.add_row(Text(label), number(values[-1]) if values else "-", line)


def sparkline(values: list[float], room: int, plain: bool = False) -> str:
    """`values` as at most `room` characters, each the mean of its stretch; the heights span the middle 90%, so that
    neither the first steps nor a spike flatten the rest.
    """
    bars = PLAIN_BARS if plain else BARS
    count = min(room, len(values))
    means = []
    for n in range(count):
        part = values[len(values) * n // count : len(values) * (n + 1) // count]
        means.append(math.fsum(part) / len(part))
    ordered = sorted(means)
    low, high = ordered[len(ordered) // 20], ordered[-1 - len(ordered) // 20]
    if high <= low:
        return bars[0] * count
    share = [min(1.0, max(0.0, (value - low) / (high - low))) for value in means]
    return "".join(bars[min(len(bars) - 1, int(value * len(bars)))] for value in share)


def _experts(rows: Table, run: Run, room: int, lines: int, plain: bool) -> None:
    """A row a layer with a cell an expert, else a cell a layer, else the worst of all. Where there are more layers than
    `lines`, the most uneven ones.
    """
    layered = run.layered()
    by_expert = {layer: run.last_list(key) for layer, key in layered.get("experts/load", {}).items()}
    known = {layer: loads for layer, loads in by_expert.items() if loads}
    if known:
        shown = sorted(sorted(known, key=lambda layer: -max(known[layer]))[:lines])
        for layer in shown:
            span = f"  {_load(min(known[layer]))} to {_load(max(known[layer]))}"
            cells = _cells(known[layer], room - len(span), plain)
            cells.append(span, style="dim")
            rows.add_row("experts" if layer == shown[0] else "", f"layer {layer}", cells)
        if len(known) > len(shown):
            rows.add_row("", "", Text(f"the {len(shown)} most uneven of {len(known)} layers", style="dim"))
        return
    worst_of = {layer: run.last(key) for layer, key in layered.get("experts/load_max", {}).items()}
    if loads := [value for value in worst_of.values() if value is not None]:
        cells = _cells(loads, room, plain)
        rows.add_row("experts", _load(max(loads)), cells.append("  busiest of each layer", style="dim"))
    elif (busiest := run.last("experts/load_max")) is not None:
        low = run.last("experts/load_min")
        idlest = "" if low is None else f"; the idlest {_load(low)}"
        rows.add_row("experts", _load(busiest), Text(f"load of the busiest; 1 is its fair share{idlest}", style="dim"))


def _load(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else number(value)


def _cells(loads: list[float], room: int, plain: bool) -> Text:
    """A cell an expert, of two characters where there is room; of the most extreme of several where there is not."""
    shades = PLAIN_SHADES if plain else SHADES
    room = max(8, room)
    count = min(room, len(loads))
    wide = 2 if 2 * count <= room else 1
    text = Text()
    for n in range(count):
        part = loads[len(loads) * n // count : len(loads) * (n + 1) // count]
        load = max(part, key=lambda value: abs(math.log(max(value, 1e-3))))
        level = sum(load >= bound for bound in LOADS)
        text.append(shades[level] * wide, style=LOAD_COLOURS[level])
    return text


def _checkpoint(run: Run, now: float) -> tuple[Any, Any]:
    if not run.saved:
        return "-", Text("nothing is saved yet", style="dim")
    words = []
    stamp = parse_stamp(run.manifest.get("saved_at"))
    if stamp is not None and run.manifest.get("step") == run.saved[-1]:
        words.append(f"{clock(max(0.0, now - stamp.timestamp()))} ago")
    files = run.manifest.get("files")
    if isinstance(files, dict):
        sizes: list[Any] = [file.get("bytes") for file in files.values() if isinstance(file, dict)]
        size = sum(count for count in sizes if is_number(count))
        words.append(f"{short(size)}B")
    words.append(f"{len(run.saved)} kept")
    return f"step {run.saved[-1]:,}", Text(", ".join(words), style="dim")


def _interrupted(rows: Table, run: Run) -> None:
    if found := interruptions(run):
        last = found[-1]
        words = (
            f"the last: {last.how} at step {last.step:,}, resumed from {last.resumed_step:,} after {clock(last.away)}"
        )
        rows.add_row("interrupted", f"{len(found)}x,", Text(words, style="dim"))


def _changed(rows: Table, run: Run) -> None:
    """A row for each restart that changed settings, the newest MOST_CHANGES."""
    found = by_restart(changes(run))
    for step in list(found)[-MOST_CHANGES:]:
        rows.add_row("changed", f"step {step:,}", Text(found[step], style="dim"))
    if len(found) > MOST_CHANGES:
        rows.add_row("", "", Text(f"earlier ones: {len(found) - MOST_CHANGES} (moe runs lists them)", style="dim"))


def _alarms(rows: Table, run: Run) -> None:
    """Of each kind the newest, and how often there was one."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for alarm in run.alarms:
        name = str(alarm.get("name"))
        kinds[name] = [*kinds.pop(name, []), alarm]
    for same in list(kinds.values())[-MOST_ALARMS:]:
        text = Text(str(same[-1].get("message", "")), style="red")
        text.append(f"  {same[-1]['fix']}" if same[-1].get("fix") else "", style="default")
        text.append(f"  ({len(same)} times)" if len(same) > 1 else "", style="dim")
        rows.add_row(Text("alarm", style="red"), Text(f"step {same[-1].get('step', '?')}"), text)
    if not run.alarms:
        rows.add_row("alarms", "none", "")


def _notes(rows: Table, run: Run) -> None:
    for note in run.notes:
        rows.add_row("note", "", Text(note, style="yellow"))
