"""What the results of benchmarks/learning.py are compared by: rows, seeds, differences and their intervals.

Differences are taken seed by seed (same initial weights where the shapes are equal, same order of the data), and their
95% interval is Student's over the seeds.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

from learning_matrix import (
    ABLATIONS,
    DENSE_ACTIVE,
    DENSE_TOTAL,
    MORE,
    MORE_SEEDS,
    Results,
    best_muon,
    muon_budgets,
)
from learning_run import Run

STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # by the number of seeds


def over_seeds(results: Results, run: Run) -> dict[int, float]:
    losses = {seed: results.final(replace(run, seed=seed)) for seed in MORE_SEEDS}
    return {seed: loss for seed, loss in losses.items() if loss is not None}


def interval(values: list[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95% interval; None for a single value."""
    if len(values) < 2:
        return values[0], None
    return statistics.mean(values), STUDENT_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def differences(results: Results, run: Run, base: Run) -> list[float]:
    mine, other = over_seeds(results, run), over_seeds(results, base)
    return [mine[seed] - other[seed] for seed in mine if seed in other]


def shares(results: Results) -> list[float]:
    """Of AdamW's tokens, all that Muon is given, from the largest."""
    return sorted({*muon_budgets(results), *MORE}, reverse=True)


def recipe_rows(results: Results) -> dict[str, Run]:
    muon = best_muon(results)
    if muon is None:
        return {}
    return {
        "the recipe: 8 experts, top 2": muon,
        "dense, as many active parameters": replace(muon, **DENSE_ACTIVE),
        "dense, as many parameters in all": replace(muon, **DENSE_TOTAL),
        **{name: replace(muon, **change) for name, change in ABLATIONS.items()},
    }
