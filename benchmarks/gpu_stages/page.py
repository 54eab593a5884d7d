"""The records as a table on the terminal, and as the GPU parts of docs/.

- A page has a place for each group of stages, between two marks. What no GPU has measured says so and how to.
- Dry runs are on no page.
"""

from __future__ import annotations

import re
from pathlib import Path

from gpu_stages.record import Record, faults, only_before, read_records
from gpu_stages.stages import STAGES

PLACES = {  # a page, its mark, and the stages whose records stand there
    "performance.md": ("gpu", ["machine", "step", "profile", "peers", "tune", "kernels", "learn"]),
    "before-a-run.md": ("gpu-memory", ["memory"]),
    "resume.md": ("gpu-resume", ["smoke", "resume", "train", "twin"]),
}
LONG = 60  # characters of a text that would make its table's column wider than a screen: it stands below
NOT_YET = "Not measured on a GPU yet: `make gpu` measures it (half an hour on one GPU)."


def number(value: float | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value.replace("|", "\\|").replace("\n", " ")
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def met(figure: Record) -> str:
    """Whether what was checked or hoped for is so; empty for a plain figure."""
    if figure["kind"] == "figure" or figure["met"] is None:
        return ""
    if figure["kind"] == "goal":
        return "met" if figure["met"] else "not met"
    return "yes" if figure["met"] else "NO"


def expected(figure: Record) -> str:
    source = f" ({number(figure['source'])})" if figure["source"] and figure["expected"] is not None else ""
    return number(figure["expected"]) + source


def table(records: dict[str, Record]) -> str:
    """A few lines for the terminal: how each stage ended, what failed, the figures that matter most."""
    lines = ["", f"{'stage':<10}{'state':<11}{'s':>5}  figures"]
    for name, record in records.items():
        top = [
            f"{figure['name']} {number(figure['value'])} {figure['unit']}".rstrip()
            + (f" ({met(figure)})" if met(figure) and figure["kind"] == "goal" else "")
            for figure in record["figures"]
            if figure["top"]
        ]
        lines.append(f"{name:<10}{record['state']:<11}{record['seconds']:>5.0f}  {'; '.join(top)}"[:400])
        lines += [f"{'':<28}FAILED: {fault}" for fault in faults(record)]
        if record["fault"]:
            lines.append(f"{'':<28}{record['fault'].strip().splitlines()[-1][:300]}")
    if any(record["dry"] for record in records.values()):
        lines.append("A dry run on the CPU: no figure means anything.")
    return "\n".join(lines)


def _row(figure: Record) -> str:
    value = f"{number(figure['value'])} {figure['unit']}".rstrip()
    return f"| {number(figure['name'])} | {value} | {expected(figure)} | {met(figure)} |"


def _table(figures: list[Record]) -> list[str]:
    """Lines of a table, and of a list below it for texts that are too long for one."""
    below = [figure for figure in figures if isinstance(figure["value"], str) and len(figure["value"]) > LONG]
    rows = [_row(figure) for figure in figures if figure not in below]
    lines = ["", "| figure | measured | expected | met |", "|---|---|---|---|", *rows] if rows else []
    for number_below, figure in enumerate(below):
        checked = f" ({met(figure)})" if met(figure) else ""
        lines += [""] * (not number_below) + [f"- {number(figure['name'])}{checked}: {number(figure['value'])}"]
    return lines


def section(stages: list[str], records: dict[str, Record]) -> str:
    """What stands between a page's marks."""
    found = {name: records[name] for name in stages if name in records and not records[name]["dry"]}
    if not found:
        return NOT_YET
    parts = []
    for name in stages:
        if name not in found:
            parts.append(f"**{name}**: {NOT_YET[0].lower()}{NOT_YET[1:]}")
            continue
        record = found[name]
        head = f"**{name}**: `python benchmarks/gpu.py --stage {name}` on {record['card']}, torch {record['torch']}, "
        head += f"{record['date']}, {record['seconds']:.0f} s"
        if record["state"] != "done":
            state = "cut short" if record["state"] == "running" else record["state"]
            head += (
                f"; {state}, so what follows is not all" if record["figures"] else f"; {state} before its first figure"
            )
        lines = [head + ".", *_table(record["figures"])]
        if earlier := only_before(record):
            lines += ["", f"From an earlier try, {record['before']['date']}:", *_table(earlier)]
        if record["fault"]:
            said = record["fault"].strip().splitlines()  # of an exception the last line, else what the command found
            lines += ["", f"It ended with: {number(said[-1 if record['state'] == 'failed' else 0])}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def with_section(text: str, mark: str, content: str) -> str:
    """A page's text with `content` between its marks."""
    pattern = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
    page, number_found = re.subn(pattern, lambda found: f"{found[1]}{content}\n{found[2]}", text, flags=re.S)
    assert number_found == 1, f"no place between <!-- {mark} --> and <!-- /{mark} -->"
    return page


def write_pages(results: Path, docs: Path) -> None:
    records = read_records(results, list(STAGES))
    for page, (mark, stages) in PLACES.items():
        path = docs / page
        text = path.read_text(encoding="utf-8")
        path.write_text(with_section(text, mark, section(stages, records)), encoding="utf-8")
