"""The runs of benchmarks/learning.py that judge the rule for rates: which they are, and what they are made of."""

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import learning_run
from learning_matrix import Results
from learning_rule import ADAMW, CELLS, LONGER, SHORT, Cell, rule_cells, rule_matrix
from learning_run import Data, Run, data_order, train


def put(results: Results, run: Run, final: float) -> None:
    results.put(run, {**dataclasses.asdict(run), "final": final, "data": "d"})


def test_every_epoch_reads_every_row_once_in_an_order_of_its_own():
    order = data_order(10, 25, seed=3)
    first, second, third = order[:10], order[10:20], order[20:]
    assert sorted(first) == sorted(second) == list(range(10)) and len(third) == 5 == len(set(third))
    assert list(first) != list(second)
    assert list(data_order(10, 7, seed=3)) == list(order[:7]), "a shorter run sees the first part"
    assert list(data_order(10, 7, seed=4)) != list(order[:7])


def test_the_cells_are_those_of_the_page():
    sizes = {
        name: (run.d_model, run.n_layers, run.tokens, run.batch * 256, run.n_experts)
        for name in CELLS
        for run in [Cell(name).run(1.0)]
    }
    assert sizes == {
        "12.6M tokens": (64, 4, 12_582_912, 2048, 8),
        "8,192 tokens a step": (64, 4, 3_145_728, 8192, 8),
        "512 tokens a step": (64, 4, 3_145_728, 512, 8),
        "width 128": (128, 4, 3_145_728, 2048, 8),
        "width 256": (256, 4, 786_432, 2048, 8),
        "width 128, 8 layers": (128, 8, 3_145_728, 4096, 8),
        "32 experts, top 4": (64, 4, 3_145_728, 2048, 32),
    }
    seeds = [(cell.name, seed) for cell, seed in rule_cells() if cell.optimizer == "muon"]
    assert sorted(seeds) == sorted([(name, 0) for name in CELLS] + [(name, 1) for name in SHORT])
    assert [cell.name for cell, _ in rule_cells() if cell.optimizer == "adamw"] == list(ADAMW)
    assert all(seed in cell.seeds for cell, seed in rule_cells())
    assert {*SHORT, *LONGER} == {*CELLS}


def test_only_the_rate_differs_within_a_cell_and_follows_the_rule():
    cell = Cell("12.6M tokens")
    rates = {factor: cell.run(factor) for factor in (0.5, 1.0, 2.0, "moonlight")}
    assert len({dataclasses.replace(run, lr=0) for run in rates.values()}) == 1
    assert rates[1.0].lr == pytest.approx(0.82 * 64 ** (-5 / 6) * 12_582_912 ** (-1 / 3) * 2048**0.5, rel=1e-3)
    assert rates[2.0].lr == pytest.approx(2 * rates[1.0].lr, rel=1e-3)
    assert rates["moonlight"].lr == pytest.approx(0.00212, rel=0.01)
    assert rates[1.0].warmup == pytest.approx(100 / 6144, rel=1e-3)
    assert rates[1.0].weight_decay == pytest.approx(1 / (0.2 * 0.004986 * 6144), rel=1e-3)
    adamw = Cell("8,192 tokens a step", optimizer="adamw").run(1.0)
    assert (adamw.warmup, adamw.lr) == (0.4, pytest.approx(0.65 * 0.01583, rel=1e-3))


def test_a_best_rate_at_an_edge_asks_for_one_more_beyond_it_and_no_more(tmp_path):
    cell, results = Cell("width 128"), Results(tmp_path)
    assert len(cell.runs(results, 0)) == 4
    for factor, final in ((1.0, 3.0), (2.0, 2.9), (0.5, 3.1)):
        put(results, cell.run(factor), final)
    assert cell.factors(results) == [1.0, 2.0, 0.5, 4.0] and cell.run(4.0) in cell.runs(results, 0)
    put(results, cell.run(4.0), 2.8)
    assert cell.factors(results) == [1.0, 2.0, 0.5, 4.0]
    inner = Cell("12.6M tokens")
    for factor in (1.0, 2.0, 0.5):
        put(results, inner.run(factor), 3.0 + abs(math.log2(factor)))
    assert inner.factors(results) == [1.0, 2.0, 0.5]


def test_of_two_seeds_the_mean_has_the_edge_and_both_run_the_rate_beyond_it(tmp_path):
    cell, results = Cell("512 tokens a step"), Results(tmp_path)
    for factor, first, second in ((1.0, 3.00, 3.10), (2.0, 3.50, 3.50), (0.5, 3.01, 3.00)):
        put(results, cell.run(factor, 0), first)
        assert cell.factors(results) == [1.0, 2.0, 0.5], "the seed that is there decides nothing"
        put(results, cell.run(factor, 1), second)
    assert cell.factors(results) == [1.0, 2.0, 0.5, 0.25]
    assert all(cell.run(0.25, seed) in cell.runs(results, seed) for seed in (0, 1))


def test_no_two_runs_are_the_same(tmp_path):
    names = [run.name for _, runs in rule_matrix(Results(tmp_path)) for run in runs or []]
    assert len(names) == len(set(names)) == 7 * 4 + 4 * 4 + 2 * 3


def test_a_run_beyond_the_data_in_steps_of_more_sequences_and_layers(monkeypatch):
    monkeypatch.setattr(learning_run, "STEPS", 4)
    rows = np.random.default_rng(0).integers(0, 50, (28, 256)).astype(np.uint16)
    data = Data(rows[:20], rows[20:], vocab_size=50, eos_id=0)
    run = Run(optimizer="muon", lr=2e-3, d_model=32, expert_hidden=16, n_layers=1, batch=16, share=1.0)
    found = train(run, data)  # two steps of 16 sequences, of which there are 20
    assert (found["steps"], found["tokens"], found["tokens_per_step"]) == (2, 2 * 16 * 256, 16 * 256)
    assert found["commit"] and math.isfinite(found["final"])
    assert train(dataclasses.replace(run, n_layers=2), data)["parameters"] > found["parameters"]
