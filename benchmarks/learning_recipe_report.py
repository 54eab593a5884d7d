"""What came out of the runs of learning_recipe.py: a table for each stage, the interval of B and its verdict.

- Differences are taken seed by seed; the intervals of B are Dunnett's: several arms against one base, 95% for all of
  them together, with the error that all arms share once arm and seed are taken out.
- Token ratio: the arm's tokens over those with which base ends at the arm's loss, exp(difference / slope) where it has
  base's; the slope is what base gains from half of the tokens to all, in nats a natural logarithm.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from learning_matrix import Results
from learning_recipe import KV_HEADS, LESS, SEEDS, bundle, bundled, check, screen, single_arms
from learning_run import Run

PICTURE = "![Each arm's final loss against base's, and the tokens it needs](learning-recipe.png)"
GOAL = 0.0  # nats above base at which the bundle ends, on LESS of the tokens


def dunnett(arms: int, freedom: int, level: float = 0.95) -> float:
    """Two-sided critical value for `arms` means against one of as many observations (Dunnett, JASA 50, 1955)."""
    z = torch.linspace(-8, 8, 401, dtype=torch.float64)
    density = (-(z**2) / 2).exp() / math.sqrt(2 * math.pi) * (z[1] - z[0])
    ratio = torch.linspace(1e-3, 4, 400, dtype=torch.float64)  # of the error's estimate to the error
    weight = ((freedom - 1) * ratio.log() - freedom * ratio**2 / 2).softmax(0)  # chi / sqrt(freedom)

    def within(bound: float) -> float:
        edge = math.sqrt(2) * bound * ratio[:, None]
        inside = (torch.special.ndtr(z + edge) - torch.special.ndtr(z - edge)) ** arms
        return float(weight @ (inside @ density))

    low, high = 1.0, 10.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < level else (low, middle)
    return high


def pooled_error(losses: list[list[float]]) -> tuple[float, int]:
    """Standard deviation of one loss once its arm and its seed are taken out, and its degrees of freedom. losses: of
    each arm, over the same seeds.
    """
    table = np.array(losses)
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return math.sqrt(float((rest**2).sum()) / freedom), freedom


def arms_of(results: Results, make: Callable[[int], dict[str, Run]], seeds: tuple[int, ...]) -> dict[str, list[Run]]:
    """Runs of each arm whose every seed is there."""
    by_seed = [make(seed) for seed in seeds]
    found = {name: [arms[name] for arms in by_seed] for name in by_seed[0]}
    return {name: runs for name, runs in found.items() if all(results.final(run) is not None for run in runs)}


def losses_of(results: Results, runs: list[Run]) -> list[float]:
    return [loss for run in runs if (loss := results.final(run)) is not None]


def row(results: Results, name: str, runs: list[Run], base: list[Run], *more: str) -> list[str]:
    """What an arm is, costs and ends at, its costs over base's."""

    def kept(field: str, of: list[Run]) -> float:
        found: list[dict[str, Any]] = [one for run in of if (one := results.get(run)) is not None]
        return statistics.mean(one[field] for one in found)

    costs = [f"{kept(field, runs) / kept(field, base):.2f}" for field in ("parameters", "flops", "cpu_seconds")]
    losses = losses_of(results, runs)
    difference = statistics.mean(a - b for a, b in zip(losses, losses_of(results, base), strict=True))
    against = "" if runs == base else f"{difference:+.4f}"
    return [name, *costs, str(len(runs)), f"{statistics.mean(losses):.4f}", against, *more]


HEAD = ["arm", "parameters", "FLOPs", "CPU seconds", "seeds", "final loss", "against base"]


def screen_rows(results: Results) -> list[list[str]]:
    arms = arms_of(results, screen, SEEDS["A"])
    rows = []
    for name, runs in arms.items():
        base = KV_HEADS[2] if name in KV_HEADS.values() else "base"
        if base in arms:
            rows.append(row(results, name, runs, arms[base]))
    return rows


def check_rows(results: Results) -> list[list[str]]:
    found = bundle(results)
    arms = {} if found is None else arms_of(results, lambda seed: check(found, seed), SEEDS["C"])
    return [row(results, name, runs, arms["base"]) for name, runs in arms.items()] if "base" in arms else []


@dataclass(frozen=True)
class Decision:
    """Stage B. gains: nats of each arm's mean against base's, and `half` the width of their interval. tokens: of each
    arm over base's. slope: nats that base gains where its tokens are e times as many.
    """

    arms: dict[str, list[Run]]
    gains: dict[str, float]
    tokens: dict[str, float]
    half: float
    slope: float

    def ratios(self, name: str) -> tuple[float, float, float]:
        """Tokens of the arm over those with which base ends at the arm's loss; least, mean, most of the interval."""
        ends = (self.gains[name] - self.half, self.gains[name], self.gains[name] + self.half)
        least, mean, most = (self.tokens[name] * math.exp(end / self.slope) for end in ends)
        return least, mean, most


def decide(results: Results) -> Decision | None:
    """None while base, base on half of the tokens or every other arm is missing."""
    arms = arms_of(results, single_arms, SEEDS["B"])
    if (found := bundle(results)) is not None:
        arms |= arms_of(results, lambda seed: bundled(found, seed), SEEDS["B"])
    half_way = arms.pop("base, half of the tokens", None)
    if "base" not in arms or half_way is None or len(arms) < 2:
        return None
    losses = {name: losses_of(results, runs) for name, runs in arms.items()}
    means = {name: statistics.mean(values) for name, values in losses.items()}
    error, freedom = pooled_error(list(losses.values()))
    return Decision(
        arms=arms,
        gains={name: mean - means["base"] for name, mean in means.items()},
        tokens={name: runs[0].tokens / arms["base"][0].tokens for name, runs in arms.items()},
        half=dunnett(len(arms) - 1, freedom) * error * math.sqrt(2 / len(SEEDS["B"])),
        slope=(statistics.mean(losses_of(results, half_way)) - means["base"]) / math.log(2),
    )


def decided(results: Results) -> tuple[list[list[str]], str]:
    """B's rows, and its verdict once the bundle is there."""
    found = decide(results)
    if found is None:
        return [], ""
    rows, base = [], found.arms["base"]
    for name, runs in found.arms.items():
        least, mean, most = found.ratios(name)
        more = ["", ""] if name == "base" else [f"± {found.half:.4f}", f"{mean:.2f} ({least:.2f} to {most:.2f})"]
        rows.append(row(results, name, runs, base, *more))
    better = [name for name, gain in found.gains.items() if found.tokens[name] == 1 and gain + found.half < 0]
    lines = [f"Better than base, the entire interval: {', '.join(better) or 'none'}. Slope {found.slope:.3f} nats."]
    for name in found.gains:
        if found.tokens[name] < 1:
            met = "met" if found.gains[name] <= GOAL else "not met"
            lines.append(
                f"The bundle on {LESS} of the tokens ends {found.gains[name]:+.4f} nats against base: goal {met}."
            )
    return rows, " ".join(lines)


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def recipe_part(results: Results) -> str:
    rows, verdict = decided(results)
    parts = [PICTURE] if screen_rows(results) else []
    for stage, head, found in (
        ("A", HEAD, screen_rows(results)),
        ("B", [*HEAD, "interval", "token ratio"], rows),
        ("C", HEAD, check_rows(results)),
    ):
        parts.append(f"Stage {stage}:\n\n{table(head, found)}" if found else f"Stage {stage}: not run yet.")
        if stage == "B" and verdict:
            parts.append(verdict)
    return "\n\n".join(parts)
