"""What the results of benchmarks/learning.py are compared by: rows, seeds, differences and their intervals.

- How many tokens Muon needs: its final losses on several token budgets, each with a schedule of its own, interpolated
  over the logarithm of the budget, seed by seed.
- Differences are taken seed by seed (same initial weights where the shapes are equal, same order of the data), and
  their 95% interval is Student's over the seeds.
- Where several arms have the same seeds, they share one error: what is left of the losses once arm and seed are taken
  out. Dunnett's value covers all arms against one base; for one arm it is Student's.
- A run that diverged has an infinite loss, and no part in an error.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace

import numpy as np
import torch
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


def dunnett(arms: int, freedom: int, level: float = 0.95) -> float:
    """Two-sided critical value for `arms` means against one of as many observations (Dunnett, JASA 50, 1955)."""
    z = torch.linspace(-8, 8, 401, dtype=torch.float64)
    density = (-(z**2) / 2).exp() / math.sqrt(2 * math.pi) * (z[1] - z[0])
    ratio = torch.linspace(1e-3, 4, 2000, dtype=torch.float64)  # of the error's estimate to the error
    weight = ((freedom - 1) * ratio.log() - freedom * ratio**2 / 2).softmax(0)  # chi / sqrt(freedom)

    def within(bound: float) -> float:
        edge = math.sqrt(2) * bound * ratio[:, None]
        inside = (torch.special.ndtr(z + edge) - torch.special.ndtr(z - edge)) ** arms
        return float(weight @ (inside @ density))

    low, high = 1.0, 100.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < level else (low, middle)
    return high


def pooled_error(*tables: list[list[float]]) -> tuple[float, int]:
    """Standard deviation of one loss once arm and seed are taken out, and its degrees of freedom; NaN with none.

    tables: losses of each arm over the same seeds; arms and seeds of one table are not those of another.
    """
    squares, freedom = 0.0, 0
    for losses in tables:
        table = np.array([arm for arm in losses if all(map(math.isfinite, arm))])
        if len(table) > 1:
            rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
            squares += float((rest**2).sum())
            freedom += (table.shape[0] - 1) * (table.shape[1] - 1)
    return (math.sqrt(squares / freedom) if freedom else math.nan), freedom


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


def made_by(results: Results, runs: list[Run]) -> str:
    """By which code runs were made: one commit, or it is said that they are several; "" where none was made."""
    found = [one for run in runs if (one := results.get(run)) is not None]
    if not found:
        return ""
    commits = sorted({one["commit"] for one in found})
    several = "" if len(commits) == 1 else ", which are several: differences between their runs may be the code's"
    preloads = sorted({name for one in found if (name := one.get("preload"))})
    more = f", with {', '.join(preloads)}" if preloads else ""
    return f"{len(found)} runs, made by commit {', '.join(commits)}{several}{more}."


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
