"""benchmarks/upcycle.py: which runs it makes from which weights on which tokens, and what it reports of them."""

import dataclasses
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import learning_run
from learning_matrix import SEEDS, Results
from learning_run import BATCH, Data, Run
from upcycle import make, rows_of
from upcycle_arms import BASE, arms, flops, pending

DENSE, UPCYCLED, SCRATCH, BOTH = arms().values()


def made_up(run: Run) -> dict:
    """Upcycled ends 0.1 above the dense model trained further, both best at 0.004."""
    loss = 5.0 + abs(run.lr - 0.004) * (run.start != "random") + 0.1 * (run.start == "upcycled") + 0.01 * run.seed
    sizes = {"parameters": 10, "active": 5, "flops": 1e12, "tokens": 100, "expert_load": [0.5, 1.5], "before": 6.0}
    curve = [[50, loss + 1], [100, loss]]
    return {**dataclasses.asdict(run), **sizes, "curve": curve, "final": loss, "commit": "abc", "data": "d"}


def test_every_run_waits_for_what_it_starts_from_and_the_seeds_are_trained_at_the_best_rate(tmp_path: Path) -> None:
    results, made = Results(tmp_path), []
    while runs := pending(results):
        made.append(runs[0])
        results.put(runs[0], made_up(runs[0]))
    assert made[:3] == [replace(BASE, seed=seed) for seed in SEEDS]
    later = [run for run in made if run.start != "random" and run.seed != 0]
    assert len(later) == 4 and {run.lr for run in later} == {0.004}
    assert len(made) == len(set(made)) == 3 + 2 * 4 + 4 + 6
    waiting = Results(tmp_path / "none")
    assert all(run.start == "random" for run in pending(waiting))


def test_the_flops_are_equal_and_the_second_part_reads_other_sequences_than_the_first() -> None:
    spent = [flops(run) * run.tokens for run in (BASE, DENSE, UPCYCLED, SCRATCH, BOTH)]
    assert spent == pytest.approx([spent[0]] * 4 + [2 * spent[0]], rel=2e-3)
    rows = np.zeros((2 * BASE.steps * BATCH + 8, 4))
    data = Data(rows, rows[:8], 64, 0)
    base, dense, up, scratch, both = (rows_of(run, data) for run in (BASE, DENSE, UPCYCLED, SCRATCH, BOTH))
    assert len(base) == len(dense) and not set(base) & set(dense) and len(set(base) | set(dense)) == 2 * len(base)
    assert list(up) == list(scratch) == list(dense[: len(up)])
    assert list(both[: len(base)]) == list(base) and list(both[len(base) :]) == list(dense[: len(both) - len(base)])


def test_both_that_start_from_the_dense_model_begin_at_its_final_loss(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(learning_run, "STEPS", 3)
    random = np.random.default_rng(0)
    rows = (random.integers(0, 12, (48, learning_run.SEQ_LEN)) ** 1.5).astype(np.uint16)
    data = Data(rows, rows[40:], 64, 0)
    ended = make(BASE, data, tmp_path)
    (tmp_path / "dense-seed0.pt").unlink()  # as where the results came from git: it is trained again
    for run in (DENSE, UPCYCLED):
        found = make(run, data, tmp_path)
        assert found["before"] == pytest.approx(ended["final"], abs=1e-5) and found["final"] < found["before"]
    assert make(SCRATCH, data, tmp_path)["before"] > ended["final"] + 0.1


def test_the_page_says_what_came_out_and_what_is_missing(tmp_path: Path) -> None:
    from upcycle_report import write_report

    (tmp_path / "upcycling.md").write_text("a\n<!-- upcycle -->\nold\n<!-- /upcycle -->\nb\n")
    results = Results(tmp_path / "results")
    write_report(results, tmp_path)
    assert "| dense, trained further | -0.05 to 0 | not run |" in (page := (tmp_path / "upcycling.md").read_text())
    assert "Not complete" in page and not (tmp_path / "upcycling.png").exists()
    while runs := pending(results):
        results.put(runs[0], made_up(runs[0]))
    write_report(results, tmp_path)
    page = (tmp_path / "upcycling.md").read_text()
    assert "| dense, trained further | -0.05 to 0 | +0.100 ± 0.000 | +0.100, +0.100, +0.100 |" in page
    assert "Not complete" not in page and page.startswith("a\n") and page.endswith("-->\nb\n")
    assert (tmp_path / "upcycling.png").stat().st_size > 10_000
