"""What the results of benchmarks/learning.py are compared by: rows, seeds, differences and their intervals.

- How many tokens Muon needs: its final losses on several token budgets, each with a schedule of its own, interpolated
  over the logarithm of the budget, seed by seed.
- Differences are taken seed by seed (same initial weights where the shapes are equal, same order of the data), and
  their 95% interval is Student's over the seeds.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace

from learning_matrix import (
    ABLATIONS,
    DENSE_ACTIVE,
    DENSE_TOTAL,
    MORE_SEEDS,
    SEEDS,
    Comparison,
    Results,
    best_muon,
)
from learning_run import Run

STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # by the number of seeds


def over_seeds(results: Results, run: Run, wanted: tuple[int, ...] = MORE_SEEDS) -> dict[int, float]:
    losses = {seed: results.final(replace(run, seed=seed)) for seed in wanted}
    return {seed: loss for seed, loss in losses.items() if loss is not None}


def interval(values: list[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95% interval; None for a single value."""
    if len(values) < 2:
        return values[0], None
    return statistics.mean(values), STUDENT_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def differences(results: Results, run: Run, base: Run) -> list[float]:
    mine, other = over_seeds(results, run), over_seeds(results, base)
    return [mine[seed] - other[seed] for seed in mine if seed in other]


def crossing(points: list[tuple[float, float]], target: float) -> float:
    """Share of the tokens at which the loss falls to the target; 0 below the least share, infinite if never reached."""
    points = sorted(points)
    if points[0][1] <= target:
        return 0.0
    for (low, above), (high, below) in itertools.pairwise(points):
        if below <= target:
            part = (above - target) / (above - below)
            return math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
    return math.inf


def token_shares(results: Results, compared: Comparison | None) -> list[float]:
    """Per seed of which all runs are made, the share of AdamW's tokens with which Muon reaches AdamW's final loss."""
    if compared is None:
        return []
    found = []
    for seed in SEEDS:
        target = results.final(replace(compared.adamw, seed=seed))
        points = [(compared.share(run), results.final(replace(run, seed=seed))) for run in compared.muons]
        known = [(share, loss) for share, loss in points if loss is not None]
        if target is not None and len(known) == len(points):
            found.append(crossing(known, target))
    return found


def recipe_rows(results: Results) -> dict[str, Run]:
    muon = best_muon(results)
    if muon is None:
        return {}
    return {
        "the recipe: 8 experts, top 2": muon,
        "dense, as many active parameters": replace(muon, **DENSE_ACTIVE),
        "dense, as many parameters in total": replace(muon, **DENSE_TOTAL),
        **{name: replace(muon, **change) for name, change in ABLATIONS.items()},
    }
