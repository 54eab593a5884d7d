"""The stage `twin` of benchmarks/gpu.py: what it makes of three series of losses."""

import math
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from gpu_stages import record, twin
from gpu_stages.run import Run

THEIRS = [10.0 - 0.25 * step for step in range(20)]
ROW = "largest difference, of transformers' own"


def with_step(step: int, change: float) -> list[float]:
    return [loss + (change if number == step else 0.0) for number, loss in enumerate(THEIRS, start=1)]


@pytest.mark.parametrize(
    ("change", "noise", "good"),
    [(0.14, 0.1, True), (0.16, 0.1, False), (-0.3, -0.25, True), (0.001, 0.0, False), (math.nan, 0.1, False)],
)
def test_ours_may_differ_by_one_and_a_half_times_their_own_noise(tmp_path, change, noise, good) -> None:
    found = record.new_record("twin", {"dry": False, "card": "H", "torch": "2", "date": "2026-01-01"})
    run = Run(record=found, out=tmp_path, work=tmp_path, pack=tmp_path, dry=False, deadline=time.monotonic() + 60)
    twin.report(run, with_step(7, change), THEIRS, with_step(12, noise))
    rows = {row["name"]: row for row in found["figures"]}
    assert record.faults(found) == ([] if good else [ROW]) and rows[ROW]["expected"] == 1.5
    assert rows["largest difference of a step's losses: at step"]["value"] == 7
    if noise:
        assert rows["transformers beside itself with another attention: at step"]["value"] == 12
    far = rows["largest difference of a step's losses"]
    assert far["kind"] == "figure" and far["expected"] == 0.1, "stands there as it was written down"


def test_a_loss_that_moves_away_for_good_fails_whatever_the_noise_is(tmp_path) -> None:
    found = record.new_record("twin", {"dry": False, "card": "H", "torch": "2", "date": "2026-01-01"})
    run = Run(record=found, out=tmp_path, work=tmp_path, pack=tmp_path, dry=False, deadline=time.monotonic() + 60)
    twin.report(run, [loss + 0.03 for loss in THEIRS], THEIRS, with_step(3, 0.5))
    assert record.faults(found) == ["loss at step 1, ours", "mean loss of the last 2 steps, ours"]
