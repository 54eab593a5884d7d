"""The columns of a log against their definition, row by row."""

import json
import math
import os
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from moe.cli.main import main
from moe.runs import lines
from moe.runs.interruptions import RATE
from moe.runs.reading import Run, RunReader, read_run
from tests.unit.runs.folders import make_run, row, stamp, write_lines

VALUES: tuple[Any, ...] = (1.5, -0.0, 7, -(10**20), 3.4e38, 1e-320, 3.5e38, 10**400, math.nan, math.inf, -math.inf)
VALUES += (True, None, "", "2.0", {"a": 1.0}, [], [1.0, 2], [0.0], [1.0, "a"], [1.0, None], [math.nan], [True], [[1.0]])
STEPS: tuple[Any, ...] = (None, "5", 2.0, True, -1, 10**15 + 1, [3])


def rows_of(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows whose keys come and go, with values of every kind; some without a step that is one."""
    draw = random.Random(seed)
    made = []
    for step in range(count):
        keys = draw.sample(["a", "b/layer_00", "b/layer_01", "metrics/eval/loss", "samples/Once", "late"], 4)
        known = draw.choice(STEPS) if draw.random() < 0.1 else step
        made.append({"step": known, **{key: draw.choice(VALUES) for key in keys}})
        if draw.random() < 0.05:
            del made[-1]["step"]
    return made


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and -3.4e38 <= value <= 3.4e38


def compare(run: Run, rows: list[dict[str, Any]]) -> None:
    sound = [one for one in rows if type(one.get("step")) is int and 0 <= one["step"] <= 10**15]
    assert run.metrics.rows == len(sound)
    assert run.keys == {key: None for one in rows for key in one if key != "step"}
    for key in [*run.keys, "step", "no such"]:
        series = [(one["step"], float(one[key])) for one in sound if is_number(one.get(key))]
        assert list(map(repr, run.series(key))) == list(map(repr, series)), key  # repr: -0.0 is not 0.0
        assert run.last(key) == (series[-1][1] if series else None)
        of_lists = [(one["step"], one[key]) for one in sound if isinstance(one.get(key), list)]
        lists = [(step, values) for step, values in of_lists if values and all(map(is_number, values))]
        assert run.lists(key) == lists
        assert run.last_list(key) == (lists[-1][1] if lists else None)
        if key.startswith("samples/"):
            texts = [(one["step"], one[key]) for one in sound if isinstance(one.get(key), str)]
            assert run.samples().get(key.removeprefix("samples/"), []) == texts


@pytest.mark.parametrize("block", [200, 4 << 20])
def test_a_column_is_what_the_rows_have_there_while_a_log_grows_and_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(lines, "BLOCK", block)
    before, after = rows_of(1, 300), rows_of(2, 80)
    folder = make_run(tmp_path / "run", rows=before)
    path, reader = folder / "metrics.jsonl", RunReader(folder)
    first = reader.read()
    compare(first, before)
    assert first.series("a") and first.lists("b/layer_01") and first.samples()["Once"]
    with open(path, "a") as file:  # damaged lines, and one that is not written to its end
        file.write('{"step": 1, "a": 2{"step": 1}\n[1]\n\nnull\n{"step": 900, "a": 1.0}\n{"step": 901, "a"')
    compare(reader.read(), [*before, {"step": 900, "a": 1.0}])
    with open(path, "a") as file:
        file.write(": 2.0}\n")
    compare(reader.read(), [*before, {"step": 900, "a": 1.0}, {"step": 901, "a": 2.0}])
    write_lines(tmp_path / "aside", before[:100])  # a resume cuts the rows behind its checkpoint
    os.replace(tmp_path / "aside", path)
    compare(reader.read(), before[:100])
    with open(path, "a") as file:
        file.write("".join(json.dumps(one) + "\n" for one in after))
    compare(reader.read(), [*before[:100], *after])


def test_who_asks_for_a_column_gets_one_of_his_own(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    for ask in (run.series, run.lists):
        for key in ("train/loss", "experts/load/layer_00"):
            ask(key).clear()
    run.samples().clear()
    run.lists("experts/load/layer_00")[0][1].clear()
    compare(run, [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()])


def test_a_long_log_is_held_as_numbers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK", 50_000, raising=False)
    rows, keys = 1500, [f"metric_{n}" for n in range(60)]
    values = ({"step": step, **{key: step + n / 7 for n, key in enumerate(keys)}} for step in range(rows))
    folder = make_run(tmp_path / "run", rows=list(values))
    tracemalloc.start()
    try:
        run = read_run(folder)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert run.last("metric_59") == rows - 1 + 59 / 7
    assert most < 2 * 16 * rows * len(keys) + 1_000_000, "16 bytes a value, what an array has in reserve, and a block"


def test_a_report_works_each_metric_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the run was interrupted; a score and a loss are shown in a chart, a table and the summary."""
    events = tuple({"time": stamp(60 * n), "event": "resume" if n else "start", "step": 2 * n} for n in range(20))
    rows = [row(step, layers=3) for step in range(1, 60)]
    folder = make_run(tmp_path / "run", rows=rows, events=events)
    asked: Counter[str] = Counter()
    for name in ("series", "lists"):
        kept = getattr(Run, name)
        monkeypatch.setattr(Run, name, lambda run, key, kept=kept: asked.update([key]) or kept(run, key))
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert asked.pop(RATE) == 3, "the interruptions, the summary, the chart"
    # a metric of a layer is asked for its numbers and for its lists
    assert {key: count for key, count in asked.items() if count > (2 if "/layer_" in key else 1)} == {}
    assert asked["experts/load/layer_02"] == 2 and asked["train/loss"] == 1
