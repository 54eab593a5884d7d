"""What benchmarks/learning.py reports of the rule: regrets, the verdict, and what is not run."""

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from learning_matrix import Results
from learning_rule import CELLS, SHORT, Cell, rule_matrix
from learning_rule_picture import draw_rule
from learning_rule_report import Outcome, adamw_verdict, against_rule, outcome, rule_part, summed, verdict

BEST = {name: 1.0 for name in CELLS}  # the best rate over the rule's


def finish(results: Results, best: dict[str, float], most: int = 10_000, noise: float = 0.001) -> None:
    """A parabola in the logarithm of the rate, around `best` times the rule's; noise: by which two seeds differ in what
    a rate does.
    """
    cells = [Cell(name, optimizer) for name in CELLS for optimizer in ("muon", "adamw")]
    rule = {(cell.name, cell.optimizer): cell.run(1.0).lr for cell in cells}
    made = True
    while made:
        made = False
        for stage, runs in rule_matrix(results):
            name = stage.removeprefix("the rule: ").partition(", seed")[0].removesuffix(", AdamW")
            for run in runs or []:
                if results.get(run) is None and most > 0:
                    factor = run.lr / rule[name, run.optimizer]
                    loss = 4 + 0.1 * math.log2(factor / best[name]) ** 2 + 0.01 * run.seed
                    if name in SHORT and run.optimizer == "muon":
                        loss += noise * factor * (1 if run.seed else -1)
                    results.put(run, {**dataclasses.asdict(run), "final": loss, "data": "d", "commit": "abc"})
                    made, most = True, most - 1


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Results]:
    def made(**changes: float) -> Results:
        results = Results(tmp_path / "results")
        finish(results, {**BEST, **{name.replace("_", " "): value for name, value in changes.items()}})
        return results

    return made


def test_a_rule_that_is_best_everywhere_passes(made) -> None:
    text = verdict(made())
    assert "Complete: 7 of 7 cells.\nIn 7 of them" in text and "**Verdict: pass.**" in text
    assert "Moonlight's rate ends +" in text


def test_one_cell_a_little_off_passes_and_two_fail(made, tmp_path: Path) -> None:
    assert "**Verdict: pass.**" in verdict(made(width_128=1.6))
    text = verdict(Results(tmp_path / "results"))
    assert "In 6 of them" in text
    other = Results(tmp_path / "other")
    finish(other, {**BEST, "width 128": 1.6, "width 256": 1.6})
    assert "**Verdict: fail.**" in verdict(other)


def test_one_cell_far_off_fails_and_its_best_is_looked_for_beyond(made) -> None:
    results = made(width_128=4.0)
    found = outcome(results, "width 128")
    assert found is not None and found.best == 4.0 and found.regret(1.0) == pytest.approx(0.4, abs=0.01)
    assert "**Verdict: fail.**" in verdict(results)


def test_what_is_not_complete_decides_nothing(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert "Complete: 0 of 7 cells." in rule_part(results) and "open" in rule_part(results)
    finish(results, BEST, most=6)
    text = rule_part(results)
    assert "Complete: 0 of 7 cells." in text and "**Verdict: open: the missing cells decide.**" in text
    assert "Not run yet: 12.6M tokens (0 of 4 runs); 8,192 tokens a step (4 of 8 runs)" in text, "a seed is missing"
    assert "32 experts, top 4 (2 of 8 runs)" in text
    assert "AdamW's cells: not run yet." in text


def test_a_verdict_that_nothing_can_change_is_said_before_all_is_run(tmp_path: Path) -> None:
    results = Results(tmp_path)
    finish(results, {**BEST, "8,192 tokens a step": 2.0})
    cell = Cell("8,192 tokens a step")
    kept = [run.name for seed in cell.seeds for run in cell.runs(results, seed)]
    for path in tmp_path.iterdir():
        if path.stem not in kept:
            path.unlink()
    assert "**Verdict: fail, whatever the missing cells say.**" in verdict(Results(tmp_path))


def test_an_interval_that_reaches_zero_is_inconclusive(tmp_path: Path) -> None:
    results = Results(tmp_path)
    finish(results, BEST, noise=2.0)
    assert "**Verdict: inconclusive.**" in verdict(results)


def test_a_rate_that_diverges_is_a_clear_loss_and_adds_no_error(made) -> None:
    results = made()
    cell = Cell("32 experts, top 4")
    for seed in cell.seeds:
        run = cell.run("moonlight", seed)
        results.read.pop(run.name, None)
        results.put(run, {**dataclasses.asdict(run), "final": None, "data": "d", "commit": "abc"})
    text = verdict(results)
    assert "Moonlight's rate ends +inf nats above the rule's (± 0.0" in text and "**Verdict: pass.**" in text


def test_adamws_share_is_kept_where_its_rate_is_near_the_best_in_both_cells(made, tmp_path: Path) -> None:
    assert "2 of 2 cells: the rule's rate is at most 0.000 nats above the best; kept." in adamw_verdict(made())
    other = Results(tmp_path / "other")
    finish(other, {**BEST, "512 tokens a step": 2.0})
    assert "; not kept." in adamw_verdict(other)


def test_the_constant_is_read_off_between_the_rates_around_it_and_never_beyond() -> None:
    found = Outcome("x", {1.0: 0.004, 2.0: 0.016, "moonlight": 0.002}, {1.0: [3.0], 2.0: [4.0], "moonlight": [9.0]})
    assert found.weighted(found.constant()) == pytest.approx(3.5)
    beyond = Outcome("x", {1.0: 0.002, 2.0: 0.004, "moonlight": 0.001}, {1.0: [3.0], 2.0: [4.0], "moonlight": [9.0]})
    assert beyond.constant() is None
    edge = Outcome("x", {1.0: 0.00395, 2.0: 0.0079, "moonlight": 0.001}, {1.0: [3.0], 2.0: [4.0], "moonlight": [9.0]})
    assert edge.weighted(edge.constant()) == pytest.approx(4.0)


def test_the_interval_of_a_sum_comes_from_the_cells_with_two_seeds() -> None:
    one = Outcome("x", {1.0: 0.01, 2.0: 0.02}, {1.0: [3.0], 2.0: [3.2]})
    two = Outcome("y", {1.0: 0.01, 2.0: 0.02}, {1.0: [3.0, 3.5], 2.0: [3.1, 3.8]})
    twice = against_rule({2.0: 1.0})
    assert summed([one], [twice]) == (pytest.approx(0.2), None)
    total, half = summed([one, two], [twice, twice])  # the seeds' differences are 0.1 and 0.3: a run's variance is 0.01
    assert total == pytest.approx(0.4) and half == pytest.approx(12.71 * math.sqrt(0.01 * (2 + 2 / 2)), rel=1e-3)
    near = against_rule({1.0: 0.9, 2.0: 0.1})
    assert summed([one, two], [near, near])[1] == pytest.approx(half / 10), (
        "a rate near the rule's is nearly the rule's"
    )


def test_the_commit_that_made_the_runs_is_named_and_several_are_pointed_out(tmp_path: Path) -> None:
    results = Results(tmp_path)
    finish(results, BEST, most=3)
    assert "3 runs, made by commit abc." in rule_part(results)
    run = Cell("width 128").run(1.0)
    results.put(run, {**dataclasses.asdict(run), "final": 4.0, "data": "d", "commit": "def+"})
    assert "4 runs, made by commit abc, def+, which are several" in rule_part(results)


def test_the_picture_is_drawn_as_soon_as_a_cell_is_complete(made, tmp_path: Path) -> None:
    draw_rule(Results(tmp_path / "none"), tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists() and "learning-rule.png" not in rule_part(Results(tmp_path / "none"))
    draw_rule(made(), tmp_path / "picture.png")
    assert 5_000 < (tmp_path / "picture.png").stat().st_size < 300_000 and "learning-rule.png" in rule_part(made())
