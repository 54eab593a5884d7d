import re
import warnings
from pathlib import Path

import pytest

from moe.cli.main import main
from moe.runs.charts import Marks, charts, loss_chart, other_charts, smooth, thin
from moe.runs.heats import Heat, expert_heats
from moe.runs.reading import read_run
from moe.runs.scales import log_ticks, number, ticks
from tests.unit.runs.folders import KILLED, TOKENS_PER_STEP, make_run, row
from tests.unit.runs.pages import parse, write


def test_interruptions_are_marked_where_they_happened(tmp_path: Path) -> None:
    from moe.runs.charts import marks_of
    from moe.runs.interruptions import interruptions

    run = read_run(make_run(tmp_path / "run", events=KILLED))
    marks = marks_of(run, interruptions(run))
    (mark,) = marks.interruptions
    assert (mark.x, mark.back) == (70 * TOKENS_PER_STEP, 50 * TOKENS_PER_STEP)
    chart = loss_chart({"run": run}, marks)
    assert chart is not None and chart.marks == marks


def test_an_interruption_beyond_the_last_row_is_on_the_axis(tmp_path: Path) -> None:
    from moe.runs.charts import marks_of
    from moe.runs.interruptions import interruptions

    stopped = {**KILLED[1], "event": "stop", "step": 90}
    folder = make_run(
        tmp_path / "run", steps=70, saved=(), state="stopped", events=(KILLED[0], stopped, {**KILLED[2], "step": 90})
    )
    run = read_run(folder)
    marks = marks_of(run, interruptions(run))
    loss = loss_chart({"run": run}, marks)
    assert (
        loss is not None and loss.limits_x == (0, 90 * TOKENS_PER_STEP) and marks.interruptions[0].x == loss.limits_x[1]
    )
    page = write(tmp_path, str(folder))
    assert all(float(x) <= 1100 - 12 for x in re.findall(r'<line class="mark" x1="([0-9.]+)"', page))


def test_a_run_at_step_0_has_an_axis_from_0(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = make_run(tmp_path / "new", run_name="新\U0001f680", rows=[{"step": 0, "metrics/eval/loss": 9.0}], saved=())
    (chart,) = [loss_chart({"new": read_run(folder)}, Marks())]
    assert chart is not None and chart.limits_x == (0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write(tmp_path, str(folder))
    assert re.findall(r'<text class="x"[^>]*>([^<]*)<', page) == ["0", "1"]
    assert capfd.readouterr().err == ""


def test_learning_rates_that_are_the_same_share_a_line(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    (rate,) = [chart for chart in charts({"run": run}, ()) if chart.title == "Learning rate"]
    assert [line.label for line in rate.lines] == ["muon, norms"]


def test_every_metric_is_drawn_once(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert [chart.title for chart in other_charts({"run": run}, ())] == ["odd/metric"]


def test_the_load_of_each_expert_is_kept_over_time(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    even, uneven = expert_heats(run)
    assert (even.title, even.labels, even.ratio) == ("Layer 0", [0, 1, 2, 3], True)
    assert {value for line in even.values for value in line} == {1.0}
    assert set(uneven.values[3]) == {0.0}
    assert even.xs[-1] == 100 * TOKENS_PER_STEP


def test_each_expert_has_the_mean_over_the_rows_that_have_one(tmp_path: Path) -> None:
    loads = ([1.0], [3.0, 5.0, 7.0], [2.0, 1.0], [4.0])  # a run changed by hand
    rows = [{"step": step, "experts/load/layer_00": loads[step // 40]} for step in range(160)]
    (heat,) = expert_heats(read_run(make_run(tmp_path / "run", rows=rows)))
    assert [len(row) for row in heat.values] == [160] * 3
    assert [row[0] for row in heat.values] == [1.0, None, None] and [row[-1] for row in heat.values] == [
        4.0,
        None,
        None,
    ]
    rows = [{"step": step, "experts/load/layer_00": loads[step % 3]} for step in range(480)]
    (heat,) = expert_heats(read_run(make_run(tmp_path / "other", rows=rows)))
    assert heat.values == [[2.0] * 160, [3.0] * 160, [7.0] * 160]


def test_thinning_keeps_ends_and_outliers() -> None:
    points = [(float(n), 1.0) for n in range(10_000)]
    points[7777] = (7777.0, 99.0)
    points[1234] = (1234.0, -5.0)
    kept = thin(points, 100)
    assert len(kept) <= 102
    assert {points[0], points[-1], points[7777], points[1234]} <= set(kept)
    assert kept == sorted(kept)


def test_smoothing_does_not_lag_behind() -> None:
    line = [(float(n), 2.0 * n) for n in range(120)]
    assert [y for _, y in smooth(line)] == pytest.approx([y for _, y in line])


def test_ticks_are_round_and_within() -> None:
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.3, 0.9, 3) == pytest.approx([0.4, 0.6, 0.8])
    assert log_ticks(0.3, 30) == pytest.approx([0.5, 1, 2, 5, 10, 20])
    assert log_ticks(1e-5, 1) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert [number(value) for value in (0, 0.00043214, 6.00003, 1486, 1234567)] == [
        "0",
        "0.0004321",
        "6.000",
        "1486",
        "1.23M",
    ]


def test_scales_bear_numbers_at_the_ends_of_what_a_float_holds() -> None:
    for low, high in ((1e-320, 1.7e308), (1e300, 1.7e308), (1e-323, 2e-323), (1.0, float("inf"))):
        assert all(low <= value <= high for value in log_ticks(low, high))
    for low, high in ((-1.7e308, 1.7e308), (0.0, 5e-324), (0.0, float("inf"))):
        assert all(low <= value <= high for value in ticks(low, high, 5))


def test_numbers_that_cannot_be_plotted_end_no_command(tmp_path: Path) -> None:
    odd = (1e308, -1e308, 3e38, -3e38, 1e-320, 5e-324, 10**400, 0, -1)
    rows = [
        {**row(step), **dict.fromkeys(("train/loss", "optim/grad_norm", "throughput/tokens_per_sec", "odd/b"), value)}
        for step, value in enumerate(odd, 1)
    ]
    rows[3] |= {"experts/load/layer_00": [3e38, -3e38, 1e308, 1.0], "experts/max_vio/layer_00": 1e308}
    rows += [{"step": step, "train/loss": 2.0} for step in (10**400, 1e308, -5, True)]
    events = ({**KILLED[0], "step": 10**400}, {**KILLED[2], "reached": 1e308}, *KILLED[3:])
    folder = make_run(tmp_path / "run", rows=rows, events=events)
    page = parse(write(tmp_path, str(folder)))
    assert "nan" not in " ".join(page.text)
    for command in (["watch", str(folder), "--once"], ["runs", str(folder)]):
        assert main(command) == 0
    huge = make_run(tmp_path / "huge", state="running", max_seq_len=10**400, global_train_batch_size=float("inf"))
    parse(write(tmp_path, str(huge)))


@pytest.mark.parametrize(("value", "told"), [(0.0, "all 0"), (3.25, "all 3.250")])
def test_a_heat_map_of_one_value_has_a_scale_of_that_value(tmp_path: Path, value: float, told: str) -> None:
    """Counts that are all zero had a scale from -0.389 to 0.389."""
    rows = [{"step": n, **{f"experts/idle/layer_0{k}": value for k in (0, 1)}} for n in (1, 2)]
    page = write(tmp_path, str(make_run(tmp_path / "run", rows=rows)))
    assert f"<span>{told}</span>" in page and "&ge; 0.389" not in page and "&lt; -" not in page
    rows[1]["experts/idle/layer_00"] = value + 1
    assert f"<span>{told}</span>" not in write(tmp_path, str(make_run(tmp_path / "other", rows=rows)))


def test_each_throughput_says_what_it_is(tmp_path: Path) -> None:
    """A median stood in the tile and the last row's beside the curve, both without a name."""
    rows = [{**row(step), "throughput/tokens_per_sec": 100.0 * step} for step in range(2, 62, 2)]
    one, other = make_run(tmp_path / "run", rows=rows, steps=60), make_run(tmp_path / "other")
    page = write(tmp_path, str(one), "--compare", str(other))
    assert "<b>4.1k</b><em>tokens/s, median of the last 20 rows" in page
    assert "<th>tokens/s, median of the last 20 rows</th>" in page
    assert "the number beside a name is the last one" in page


@pytest.mark.parametrize(
    ("experts", "shown"), [(3, ["0", "1", "2"]), (64, ["0", "8", "16", "24", "32", "40", "48", "56"])]
)
def test_the_picture_numbers_the_rows_of_a_heat_map(experts: int, shown: list[str]) -> None:
    from matplotlib.figure import Figure

    from moe.runs.png import _heat

    figure = Figure()
    axes = figure.add_subplot()
    values: list[list[float | None]] = [[1.0, 2.0]] * experts
    _heat(figure, axes, Heat("Layer 0", "expert", list(range(experts)), [10.0, 20.0], values, True), "")
    assert [label.get_text() for label in axes.get_yticklabels()] == shown


def test_a_column_of_the_picture_is_as_wide_as_its_tokens(tmp_path: Path) -> None:
    """Rows that were logged more often took more of the axis: an expert idle at first was shown idle for half a run."""
    from matplotlib.figure import Figure

    from moe.runs.png import _heat

    figure = Figure()
    axes = figure.add_subplot()
    _heat(figure, axes, Heat("Layer 0", "expert", [0, 1], [1.0, 2.0, 100.0], [[0.0, 0.0, 1.0]] * 2, True), "")
    edges = axes.collections[0].get_coordinates()
    assert edges[0, :, 0].tolist() == [0, 1, 2, 100] and axes.get_ylim() == (2, 0), "as on the page, the first on top"
