"""The stage `twin` of benchmarks/gpu.py: what it makes of two series of losses."""

import math
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from gpu_stages import record, twin
from gpu_stages.run import Run

THEIRS = [10.0 - 0.25 * step for step in range(20)]


def reported(tmp_path, precision: str, ours: list[float], moved: list[float] | None = None) -> record.Record:
    found = record.new_record("twin", {"dry": False, "card": "H", "torch": "2", "date": "2026-01-01"})
    run = Run(record=found, out=tmp_path, work=tmp_path, pack=tmp_path, dry=False, deadline=time.monotonic() + 60)
    twin.report(run, precision, ours, THEIRS, moved)
    return found


def with_step(step: int, change: float) -> list[float]:
    return [loss + (change if number == step else 0.0) for number, loss in enumerate(THEIRS, start=1)]


@pytest.mark.parametrize(("change", "good"), [(0.009, True), (-0.011, False), (math.nan, False)])
def test_in_fp32_a_step_that_is_far_fails(tmp_path, change, good) -> None:
    found = reported(tmp_path, "fp32", with_step(7, change))
    row = "fp32: largest difference of a step's losses"
    assert record.faults(found) == ([] if good else [row])
    assert {figure["name"]: figure["unit"] for figure in found["figures"]}[row] == "at step 7"


@pytest.mark.parametrize(("change", "good"), [(0.059, True), (0.061, False)])
def test_in_fp32_ours_may_be_twice_as_far_as_from_itself_moved_a_little(tmp_path, change, good) -> None:
    ours = with_step(7, change)
    moved = [loss + (0.03 if number == 12 else 0.0) for number, loss in enumerate(ours, start=1)]
    assert bool(record.faults(reported(tmp_path, "fp32", ours, moved))) != good


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_moves_away_is_a_fault_in_fp32_and_a_goal_not_met_in_bf16(tmp_path, precision) -> None:
    found = reported(tmp_path, precision, [THEIRS[0], *(loss + 0.2 for loss in THEIRS[1:])])
    missed = [figure["name"] for figure in found["figures"] if figure["met"] is False]
    mean = f"{precision}: mean loss of the last 2 steps, ours"
    assert missed == [f"{precision}: largest difference of a step's losses", mean]
    assert record.faults(found) == (missed if precision == "fp32" else [])


def test_another_first_loss_is_a_fault_in_either_precision(tmp_path) -> None:
    for precision, change in (("fp32", 2e-4), ("bf16", 0.02)):
        found = reported(tmp_path, precision, with_step(1, change))
        assert f"{precision}: loss at step 1, ours" in record.faults(found)
