"""One run, or several side by side, as one HTML page that needs nothing beside it: no network, no other file.

Decisions:
- The first run is the one reported: its interruptions, experts, samples and alarms are shown; the others stand beside
  it in the curves and in the tables of what differs.
- Style and script are files of this package, put into the page. Every text of a file is escaped.
"""

from __future__ import annotations

import datetime
import re
import time
from html import escape
from pathlib import Path
from typing import Any

from moe.common.units import clock, short
from moe.runs.changes import Change
from moe.runs.charts import Marks, other_charts
from moe.runs.compare import data, differences, settings, versions
from moe.runs.interruptions import Interruption
from moe.runs.reading import RUNNING, Run
from moe.runs.report import Report
from moe.runs.scales import number
from moe.runs.summary import RECENT, Summary
from moe.runs.svg import SLOTS, heat_map, line_chart
from moe.runs.task_scores import score_rows

WIDE, HALF, THIRD = (1100, 320), (540, 210), (350, 150)  # width and height of a drawing
NONE = "–"
RATE_IS = f"tokens/s, median of the last {RECENT} rows"


MADE = '<meta name="generator" content="moe report">'  # tells a page that may be replaced


def report_page(report: Report) -> str:
    runs, (label, run) = report.runs, report.first
    body = "".join(
        [
            _head(report),
            _curves(report),
            _tasks(runs),
            _experts(report),
            _changes(report.changes, report.marks),
            _interruptions(run, report.interruptions),
            _alarms(run),
            _differences(runs),
            _samples(run),
            _facts(run),
            _others(runs, report.marks),
        ]
    )
    here = Path(__file__)
    style, script = (here.with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    title = escape(" and ".join(runs) if len(runs) > 1 else label)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{MADE}<title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><style>{style}</style></head>'
        f"<body><main>{body}</main><script>{script}</script></body></html>\n"
    )


def _section(title: str, body: str, note: str = "") -> str:
    note = f"<p class='note'>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>" if body else ""


def _table(rows: list[list[str]], head: list[str], numbers: bool = False) -> str:
    """`rows` of texts, escaped here."""
    kind = ' class="numbers"' if numbers else ""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="card table"><table{kind}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _head(report: Report) -> str:
    made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    runs, (label, run) = report.runs, report.first
    one = report.summaries[label]
    badge = f'<span class="badge {one.state}">{one.state}</span>'
    line = [run.folder, f"last written {clock(max(0, time.time() - one.updated))} before this report ({made})"]
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for run in runs.values() for note in run.notes)
    top = f"<header><h1>{escape(label)}{badge}</h1><p class='note'>{escape(' · '.join(line))}</p>{notes}</header>"
    beside = _side_by_side(report.summaries) if len(runs) > 1 else ""
    return top + _tiles(run, one, report.interruptions) + beside


def _tiles(run: Run, one: Summary, found: list[Interruption]) -> str:
    of_tokens = f"of {short(one.total_tokens)}" if one.total_tokens else ""
    steps = f"step {one.step:,}"
    cost = sum(each.cost for each in found)
    rate = RATE_IS + (f"; {clock(one.seconds_left)} left" if one.seconds_left and one.state == RUNNING else "")
    tiles = [
        ("Tokens", short(one.tokens) if one.tokens else "0", f"{of_tokens}, {steps}".lstrip(", ")),
        ("Training loss", _number(one.loss), "nats per token"),
        ("Validation loss", _losses(one, "loss"), f"lowest {_losses(one, 'best')}" if one.validations else "none yet"),
        ("Throughput", short(one.rate) if one.rate else NONE, rate),
        ("Interruptions", str(len(found)) if run.events else NONE, f"cost {clock(cost)}" if found else "none known"),
        ("Alarms", str(len(run.alarms)), "see below" if run.alarms else "none"),
    ]
    items = "".join(
        f"<div class='card'><span>{a}</span><b{' class=several' if ', ' in b else ''}>{escape(b)}</b>"
        f"<em>{escape(c)}</em></div>"
        for a, b, c in tiles
    )
    return f'<div class="tiles">{items}</div>'


def _side_by_side(summaries: dict[str, Summary]) -> str:
    head = "".join(
        f"<th>{cell}</th>" for cell in ("run", "state", "step", "tokens", "loss", "validation", "lowest", RATE_IS)
    )
    body = ""
    for slot, (label, one) in enumerate(summaries.items()):
        cells = [one.state, f"{one.step:,}", short(one.tokens or 0), _number(one.loss), _losses(one, "loss")]
        cells += [_losses(one, "best"), short(one.rate) if one.rate else NONE]
        name = f'<td><i class="swatch c{slot % SLOTS}"></i>{escape(label)}</td>'
        body += f"<tr>{name}{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    table = f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="card table">{table}</div>'


def _curves(report: Report) -> str:
    (_, run), marks = report.first, report.marks
    drawn = line_chart(report.loss, *WIDE) if report.loss else ""
    drawn += "".join(line_chart(chart, *HALF) for chart in report.charts)
    empty = f'<p class="card empty">{run.no_rows.capitalize()}.</p>'
    note = "Over tokens trained on; the number beside a name is the last one."
    if marks.interruptions:
        note += " A numbered line is an interruption; what lies in the band before it are retrained steps."
    if marks.changes:
        note += " At a line with a letter settings were changed."
    return _section("Curves", f'<div class="grid">{drawn}</div>' if drawn else empty, note)


def _tasks(runs: dict[str, Run]) -> str:
    head, rows = score_rows(runs)
    note = "Scores of lm-eval's tasks with their standard errors, and how well the validation sets are predicted."
    return _section("Tasks", _table(rows, head, numbers=True) if rows else "", note)


def _experts(report: Report) -> str:
    """With the run's name where there are several."""
    name = report.first[0] if len(report.runs) > 1 else ""
    by_expert, by_layer = report.by_expert, report.by_layer
    size = HALF[0] if len(by_expert) <= 4 else THIRD[0]
    grid = "grid" if len(by_expert) <= 4 else "grid three"
    drawn = (
        f'<div class="{grid}">{"".join(heat_map(heat, size, name) for heat in by_expert)}</div>' if by_expert else ""
    )
    layers = "".join(heat_map(heat, HALF[0], name) for heat in by_layer)
    if drawn and layers:
        layers = (
            f"<details><summary>{len(by_layer)} metrics by layer</summary><div class='grid'>{layers}</div></details>"
        )
    elif layers:
        layers = f'<div class="grid">{layers}</div>'
    note = "How much each expert is used, over time: 1 is its fair share, blue is idle, red is overloaded."
    return _section(f"Experts of {name}" if name else "Experts", drawn + layers, note)


def _changes(changed: list[Change], marks: Marks) -> str:
    """What was changed in mid-run; nothing where nothing was."""
    names = dict(zip(dict.fromkeys(change.step for change in changed), marks.changes, strict=True))
    rows = [
        [names[one.step].letter, f"{one.step:,}", one.key, one.was, one.now, one.at, one.command] for one in changed
    ]
    head = ["", "after step", "setting", "was", "is", "when (UTC)", "by"]
    moved = dict.fromkeys(one.rate for one in changed if one.rate)
    note = ". ".join(["What was changed between two parts of the run", *map(str.capitalize, moved)]) + "."
    return _section("Changes", _table(rows, head) if rows else "", note)


def _interruptions(run: Run, found: list[Interruption]) -> str:
    if not run.events:
        return _section(
            "Interruptions", '<p class="card empty">The run folder has no events.jsonl, which records them.</p>'
        )
    if not found:
        return _section("Interruptions", '<p class="card empty">None.</p>')
    rows = [
        [
            str(n),
            f"{one.at:%Y-%m-%d %H:%M:%S}",
            one.how + (f" ({one.reason})" if one.reason else ""),
            f"{one.step:,}",
            f"{one.resumed_step:,}",
            clock(one.away),
            f"{one.replayed:,}" + (f" ({clock(one.replay)})" if one.replay is not None and one.replayed else ""),
            clock(one.cost),
        ]
        for n, one in enumerate(found, 1)
    ]
    if len(rows) > 1:
        rows.append(["", "", "total", "", "", clock(sum(o.away for o in found)), f"{sum(o.replayed for o in found):,}"])
        rows[-1].append(clock(sum(one.cost for one in found)))
    head = ["", "when (UTC)", "how", "at step", "resumed from", "downtime", "retrained steps", "cost"]
    return _section("Interruptions", _table(rows, head, numbers=True))


def _alarms(run: Run) -> str:
    if not run.alarms:
        return ""
    rows = [[_text(alarm.get(key)) for key in ("step", "time", "name", "message", "fix")] for alarm in run.alarms]
    return _section("Alarms", _table(rows, ["step", "time", "alarm", "what was seen", "what to do"]))


def _differences(runs: dict[str, Run]) -> str:
    if len(runs) < 2:
        return ""
    parts, same = [], []
    for name, table in differences(list(runs.values())).items():
        if table:
            parts.append(_table([[key, *values] for key, values in table.items()], [name, *runs]))
        else:
            same.append(name)
    if same:
        parts.append(f'<p class="card empty">No difference in {" and ".join(same)}.</p>')
    return _section("What differs", "".join(parts))


def _samples(run: Run) -> str:
    parts = []
    for prompt, texts in run.samples().items():
        rows = "".join(
            f"<tr><td>{step:,}</td><td><q>{escape(prompt)}</q>{escape(_dense(text))}</td></tr>"
            for step, text in reversed(texts)
        )
        parts.append(
            f'<div class="card table samples"><table><thead><tr><th>step</th><th>{escape(prompt)} …</th></tr>'
            f"</thead><tbody>{rows}</tbody></table></div>"
        )
    grid = f'<div class="grid">{"".join(parts)}</div>' if parts else ""
    return _section("Generations", grid, "What the model wrote at each evaluation, newest first.")


def _facts(run: Run) -> str:
    record = {key: str(value) for key, value in run.record.items()}
    record |= {"state": run.state, "checkpoints": ", ".join(f"{step:,}" for step in run.saved) or "none"}
    here = {"Run": record, "Environment": versions(run), "Data": data(run)}
    left = "".join(_facts_table(title, facts) for title, facts in here.items())
    right = _facts_table("Configuration", settings(run))
    return _section("Facts", f'<div class="grid"><div>{left}</div><div>{right}</div></div>')


def _facts_table(title: str, facts: dict[str, str]) -> str:
    if not facts:
        return ""
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in facts.items())
    return f'<div class="card table"><h3>{escape(title)}</h3><table class="facts">{rows}</table></div>'


def _others(runs: dict[str, Run], marks: Marks) -> str:
    drawn = [line_chart(chart, *THIRD) for chart in other_charts(runs, marks)]
    if not drawn:
        return ""
    inner = (
        f'<details><summary>{len(drawn)} more metrics</summary><div class="grid three">{"".join(drawn)}</div></details>'
    )
    return _section("Everything else that was logged", inner)


def _losses(one: Summary, which: str) -> str:
    """Of every validation set, with its name where it has one."""
    found = {name: values[which] for name, values in one.validations.items()}
    return ", ".join(f"{name} {number(value)}".strip() for name, value in found.items()) or NONE


def _number(value: float | None) -> str:
    return NONE if value is None else number(value)


def _dense(text: str) -> str:
    """Without empty lines, of which a young model writes many."""
    return re.sub(r"\n\s*\n", "\n", text).rstrip()


def _text(value: Any) -> str:
    return NONE if value is None else f"{value:,}" if isinstance(value, int) else str(value)
