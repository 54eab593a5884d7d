"""benchmarks/learning.py: which runs it makes, that none is made twice, and what it reports of them."""

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import learning
import learning_run
from learning_matrix import (
    LONG,
    RATES,
    SEEDS,
    Results,
    best_muon,
    comparison,
    long_comparison,
    matrix,
    muon_budgets,
    sweep,
    tuned_adamw,
)
from learning_report import write_report
from learning_run import Data, Run, train
from learning_stats import crossing, interval, token_shares

BEST = {"adamw": 4e-3, "muon": 2e-3}
PAGES = {
    "learning.md": ("rule", "stages"),
    "learning-older.md": ("goals", "rates", "adamw", "budgets", "long", "recipe", "missing"),
}


def made_up(run: Run) -> dict:
    """A result in which Muon has AdamW's final loss on 0.6 of the tokens, and only beta2 helps AdamW; on LONG times the
    tokens Muon wants twice the rate for AdamW's part.
    """
    loss = 5.0 + 0.1 * math.log2(run.lr / BEST[run.optimizer]) ** 2 + 0.01 * run.seed
    if run.optimizer == "muon":
        long = run.share > 1
        loss += math.log(0.6 / (run.share / LONG if long else run.share)) + 0.03 * (long and run.adamw_ratio != 2)
    loss += 0.02 * (run.warmup != 0.1) + 0.02 * (run.weight_decay != 0.1) - 0.01 * (run.beta2 != 0.95)
    loss += 0.01 * (run.optimizer == "muon" and run.beta2 == 0.95) * -1 + 0.2 * (run.n_experts == 1)
    curve = [[run.tokens * i // 6, loss + 6 - i] for i in range(1, 7)]
    source = {"data": "d", "commit": "abc"}
    sizes = {"parameters": 10, "active": 5, "flops": 100.0, "optimizer_flops": 10.0, "expert_load": [0.5, 1.5]}
    sizes |= {"cpu_seconds": 1.0}
    return {**dataclasses.asdict(run), **sizes, **source, "tokens": run.tokens, "curve": curve, "final": loss}


def finish(results: Results, most: int = 1000) -> list[Run]:
    """Makes up all that is pending, again and again, as several drivers would; returns the runs in their order."""
    made: list[Run] = []
    while runs := learning.pending(results)[0][: most - len(made)]:
        for run in runs:
            results.put(run, made_up(run))
        made += runs
    return made


def test_no_run_is_made_twice_and_another_process_goes_on_where_one_stopped(tmp_path):
    first = finish(Results(tmp_path), most=11)
    second = finish(Results(tmp_path))
    assert len({run.name for run in first + second}) == len(first + second) > 40
    assert learning.pending(Results(tmp_path)) == ([], 0)


def test_a_result_half_written_is_none(tmp_path, monkeypatch):
    run = Run(optimizer="adamw", lr=1e-3)
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Results(tmp_path).put(run, made_up(run))
    assert Results(tmp_path).get(run) is None


def test_a_run_in_another_processs_hands_is_not_taken_and_free_after_it(tmp_path):
    run = Run(optimizer="adamw", lr=1e-3)
    with learning.claim(tmp_path, run) as mine, learning.claim(tmp_path, run) as second:
        assert mine and not second
    with learning.claim(tmp_path, run) as again:
        assert again


def test_a_sweep_grows_at_its_edge_until_the_best_rate_lies_inside(tmp_path, monkeypatch):
    monkeypatch.setitem(BEST, "muon", 3.2e-2)
    results = Results(tmp_path)
    finish(results)
    rates = [run.lr for run in sweep(results, Run(optimizer="muon", lr=0))]
    assert rates == [*RATES, 1.6e-2, 3.2e-2, 6.4e-2]
    best = best_muon(results)
    assert best is not None and best.lr == 3.2e-2


def test_later_stages_wait_for_what_the_earlier_find(tmp_path):
    results = Results(tmp_path)
    assert [stage for stage, runs in matrix(results) if runs is not None] == ["learning rates"]
    finish(results)
    adamw, muon = tuned_adamw(results)[1], best_muon(results)
    assert adamw == Run(optimizer="adamw", lr=4e-3, beta2=0.99) and muon == Run(optimizer="muon", lr=2e-3)
    budgets = dict(matrix(results))["Muon on fewer tokens, three seeds"]
    assert budgets is not None and len(budgets) == len(SEEDS) * 3  # AdamW, Muon, Muon on half


def test_adamw_is_tuned_until_no_neighbour_is_better(tmp_path, monkeypatch):
    def valley(run: Run, plain=made_up) -> dict:  # the rate pays only together with warmup
        rate = math.log2(run.lr / 1.6e-2)
        warmup = math.log2(run.warmup / 0.4)
        gain = (rate - warmup) ** 2 + 0.1 * warmup**2 - 0.1 * (run.weight_decay == 0.01)
        return {**plain(run), "final": 6 + gain if run.optimizer == "adamw" else 5.0 + abs(math.log2(run.lr / 2e-3))}

    monkeypatch.setattr(sys.modules[__name__], "made_up", valley)
    results = Results(tmp_path)
    finish(results)
    assert tuned_adamw(results)[1] == Run(optimizer="adamw", lr=1.6e-2, warmup=0.4, weight_decay=0.01)


def test_on_more_tokens_both_are_tuned_and_compared_with_seeds(tmp_path):
    results = Results(tmp_path)
    assert long_comparison(results) is None
    finish(results)
    compared = long_comparison(results)
    assert compared is not None
    assert compared.adamw == Run(optimizer="adamw", lr=4e-3, share=LONG, beta2=0.99)
    assert compared.muons[0] == Run(optimizer="muon", lr=2e-3, share=LONG, adamw_ratio=2.0)
    assert [compared.share(run) for run in compared.muons] == [1.0, 0.75, 0.5]
    assert token_shares(results, compared) == pytest.approx([0.6] * 3, abs=0.003)


def test_muon_gets_ever_fewer_tokens_until_it_falls_behind_adamw(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "made_up", lambda run, plain=made_up: {
        **plain(run), "final": plain(run)["final"] - 0.6 * (run.optimizer == "muon")
    })  # fmt: skip
    results = Results(tmp_path)
    finish(results)
    assert muon_budgets(results) == [1.0, 0.5, 0.35, 0.25]
    assert token_shares(results, comparison(results)) == pytest.approx([0.6 / math.exp(0.6)] * 3, abs=0.003)


def test_the_share_of_tokens_is_interpolated_seed_by_seed(tmp_path):
    results = Results(tmp_path)
    finish(results)
    assert token_shares(results, comparison(results)) == pytest.approx([0.6] * 3, abs=0.003)
    assert crossing([(0.5, 5.1), (1.0, 4.9)], 5.0) == pytest.approx(math.sqrt(0.5))
    assert crossing([(0.5, 5.1), (1.0, 4.9)], 4.8) == math.inf
    assert crossing([(0.5, 5.1), (1.0, 4.9)], 5.2) == 0.0
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(2.484, abs=1e-3)  # Student's 4.303 over the root of 3
    assert interval([1.0]) == (1.0, None)


def test_the_report_tells_what_is_met_what_is_not_and_what_was_not_run(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, parts in PAGES.items():
        (docs / name).write_text("".join(f"<!-- {part} -->\nold\n<!-- /{part} -->\n" for part in parts))
    results = Results(tmp_path / "results")
    finish(results, most=12)
    write_report(results, docs)
    page = (docs / "learning-older.md").read_text()
    assert "old" not in page and "not run" in page and "- dense: 4 of 4 runs" in page
    assert "old" not in (docs / "learning.md").read_text()
    finish(results)
    write_report(Results(tmp_path / "results"), docs)
    page = (docs / "learning-older.md").read_text()
    assert "not run" not in page and "The matrix is complete." in page
    assert "| Muon reaches tuned AdamW's final loss with at most 0.75 of its tokens | 0.60 ± 0.00 | yes" in page
    assert "of equal active parameters, on 4 times the tokens (nats of difference) | +0.200 ± 0.000 | yes |" in page
    assert "| the same on 4 times the tokens, both tuned there | 0.60 ± 0.00 | yes (the entire interval) |" in page
    assert "| a rate of 0.001 ends within 0.02 nats of the best | +0.100 | no |" in page
    assert (docs / "learning.png").stat().st_size < 300_000


def test_results_of_other_text_are_refused(tmp_path):
    results = Results(tmp_path)
    finish(results, most=3)
    learning.check_same_data(results, "d")
    with pytest.raises(learning.InputError, match="made from other text"):
        learning.check_same_data(results, "e")


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setattr(learning_run, "STEPS", 4)
    rows = np.random.default_rng(0).integers(0, 50, (64, 256)).astype(np.uint16)
    return Data(rows[:56], rows[56:], vocab_size=50, eos_id=0)


SMALL = {"d_model": 32, "expert_hidden": 16, "lr": 2e-3}


def test_a_run_gives_the_same_losses_each_time_and_the_seed_others(data):
    run = Run(optimizer="muon", **SMALL)
    first = train(run, data)
    assert first["final"] == train(run, data)["final"] != train(dataclasses.replace(run, seed=1), data)["final"]
    assert len(first["curve"]) == 4 and first["curve"][-1] == [run.tokens, first["final"]]
    assert train(Run(optimizer="adamw", **SMALL), data)["final"] != first["final"]


@pytest.mark.parametrize(
    "change",
    [{"balance": "microbatch"}, {"balance": "running"}, {"document_mask": False}, {"qk_norm": False},
     {"adamw_ratio": 2.0}, {"router": "muon"}, {"weight_decay": 0.01}, {"warmup": 0.5}],
    ids=str,
)  # fmt: skip
def test_every_part_of_the_recipe_makes_a_difference(data, change):
    run = Run(optimizer="muon", **SMALL)
    assert train(dataclasses.replace(run, **change), data)["final"] != train(run, data)["final"]
