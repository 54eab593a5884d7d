"""Scores of tasks in what shows a run: page, picture, frame and model card."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from moe.runs.charts import Marks
from moe.runs.frame import frame
from moe.runs.page import report_page
from moe.runs.png import report_png
from moe.runs.reading import read_run
from moe.runs.report import Report
from moe.runs.task_scores import _two_digits, score_rows, task_charts
from tests.unit.runs.folders import TOKENS_PER_STEP, make_run, row

SCORES = {50: (0.25, 0.05, 3.0), 100: (0.5, 0.04, 2.0)}


def scored(folder: Path, better: float = 0.0) -> Path:
    rows = [row(step) for step in range(10, 101, 10)]
    for step, (acc, error, bits) in SCORES.items():
        scores = {"tasks/easy/acc": acc + better, "tasks/easy/acc_stderr": error, "tasks/text/bits_per_byte": bits}
        rows.append({"step": step, "metrics/eval/loss": 3.0, "metrics/eval/bits_per_byte": 1.5})
        rows.append({"step": step, **scores, "tasks/easy/extra": 7.0, "tasks/seconds": 1.0})
    return make_run(folder, rows=sorted(rows, key=lambda one: one["step"]))


def test_a_run_is_drawn_by_its_main_scores_with_error_bars(tmp_path: Path) -> None:
    run = read_run(scored(tmp_path / "one"))
    shares, bits = task_charts({"one": run}, Marks())
    assert (shares.title, bits.title) == ("Tasks", "Tasks, bits_per_byte")
    (line,) = shares.lines
    assert line.label == "easy" and line.points == [(50 * TOKENS_PER_STEP, 0.25), (100 * TOKENS_PER_STEP, 0.5)]
    assert line.bars == [(50 * TOKENS_PER_STEP, 0.2, 0.3), (100 * TOKENS_PER_STEP, 0.46, 0.54)]
    assert bits.lines[0].bars == []
    page = report_page(Report.of({"one": run}))
    assert page.count('class="bar c0"') == 2 and "<h2>Tasks</h2>" in page
    assert page.count("tasks/") == 0, "no score has a small chart of its own beside"
    assert report_png(Report.of({"one": run}))


def test_the_table_has_every_metric_and_the_validation_beside(tmp_path: Path) -> None:
    one, two = read_run(scored(tmp_path / "one")), read_run(scored(tmp_path / "two", better=0.25))
    assert score_rows({"one": one}) == (
        ["task", "metric", "first", "last", "at step"],
        [
            ["easy", "acc", "0.2500 ± 0.05", "0.5000 ± 0.04", "100"],
            ["easy", "extra", "7.000", "7.000", "100"],
            ["text", "bits_per_byte", "3.000", "2.000", "100"],
            ["validation", "bits per byte", "1.500", "1.500", "100"],
        ],
    )
    assert [_two_digits(error) for error in (0.0207, 4.71, 137.4)] == ["0.021", "4.7", "137"]
    head, rows = score_rows({"one": one, "two": two})
    assert head == ["task", "metric", "one", "two"] and rows[0][2:] == ["0.5000 ± 0.04", "0.7500 ± 0.04"]
    charts = task_charts({"one": one, "two": two}, Marks())
    assert [[line.label for line in chart.lines] for chart in charts] == [["one", "two"], ["one", "two"]]
    assert "<h2>Tasks</h2>" in report_page(Report.of({"one": one, "two": two}))


def test_a_run_without_scores_shows_none(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert task_charts({"run": run}, Marks()) == [] and score_rows({"run": run})[1] == []
    assert "<h2>Tasks</h2>" not in report_page(Report.of({"run": run}))


def test_the_frame_has_the_last_scores(tmp_path: Path) -> None:
    console = Console(width=90, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(frame(read_run(scored(tmp_path / "one")), console))
    assert "easy 0.5000 ± 0.04, text 2.000" in " ".join(console.export_text().split())


def test_the_card_has_the_last_scores_with_what_was_asked() -> None:
    from moe.use.export.card_tasks import tasks_section

    rows = [{"step": 5, "tasks/easy/acc": 0.25, "tasks/easy/acc_stderr": 0.1, "tasks/seconds": 1.0}]
    rows.append({"step": 10, "tasks/easy/acc": 0.5, "tasks/easy/acc_stderr": 0.125, "tasks/seconds": 1.0})
    (section,) = tasks_section(rows, {"eval_tasks": {"limit": 500, "fewshot": 0}})
    assert "at most 500 questions each, 0 examples before each question." in section
    assert section.splitlines()[-1] == "| easy | acc | 10 | 0.5000 | 0.1250 |" and "0.25" not in section
    assert tasks_section([{"step": 5, "train/loss": 1.0}], {}) == []
