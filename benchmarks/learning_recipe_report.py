"""What came out of the runs of learning_recipe.py: a table for each stage, the intervals of B and D and their verdict.

- Differences are taken seed by seed; the intervals of B are Dunnett's: several arms against one base, 95% for all of
  them together, with the error that all arms share once arm and seed are taken out. D's one arm has 95% for itself,
  with the error of B's arms and its own.
- Token ratio: the arm's tokens over those with which base ends at the arm's loss, exp(difference / slope) where it has
  base's; the slope is what base gains from half of the tokens to all, in nats a natural logarithm. Its own error is not
  in the interval.
- A bundle that is one of B's other arms is not counted twice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from learning_matrix import Results
from learning_recipe import (
    HALF_WAY,
    LESS,
    SEEDS,
    Change,
    base_of,
    bundle,
    bundled,
    check,
    equal_size,
    recipe_matrix,
    screen,
    single_arms,
)
from learning_run import Run
from learning_stats import dunnett, interval, made_by, pooled_error

PICTURE = "![Each arm's final loss against base's, and the tokens it needs](learning-recipe.png)"
GOAL = 0.0  # nats above base at which the bundle ends, on LESS of the tokens
DIVERGED = "diverged"


def arms_of(results: Results, make: Callable[[int], dict[str, Run]], seeds: tuple[int, ...]) -> dict[str, list[Run]]:
    """Runs of each arm whose every seed is there."""
    by_seed = [make(seed) for seed in seeds]
    found = {name: [arms[name] for arms in by_seed] for name in by_seed[0]}
    return {name: runs for name, runs in found.items() if all(results.final(run) is not None for run in runs)}


def losses_of(results: Results, runs: list[Run]) -> list[float]:
    return [loss for run in runs if (loss := results.final(run)) is not None]


def row(results: Results, name: str, runs: list[Run], base: list[Run], *more: str) -> list[str]:
    """What an arm is, costs and ends at, its costs over base's."""

    def kept(of: list[Run], *fields: str) -> float:
        found: list[dict[str, Any]] = [one for run in of if (one := results.get(run)) is not None]
        return statistics.mean(sum(one[field] for field in fields) for one in found)

    costs = [
        f"{kept(runs, *fields) / kept(base, *fields):.2f}"
        for fields in (["parameters"], ["flops"], ["flops", "optimizer_flops"], ["cpu_seconds"])
    ]
    losses = losses_of(results, runs)
    difference = statistics.mean(a - b for a, b in zip(losses, losses_of(results, base), strict=True))
    ends = [f"{statistics.mean(losses):.4f}", "" if runs == base else f"{difference:+.4f}"]
    return [name, *costs, str(len(runs)), *(ends if math.isfinite(difference) else [DIVERGED, DIVERGED]), *more]


HEAD = ["arm", "parameters", "FLOPs", "with Muon's", "CPU seconds", "seeds", "final loss", "against base"]
JUDGED = [*HEAD, "interval", "token ratio"]


def screen_rows(results: Results) -> list[list[str]]:
    arms = arms_of(results, screen, SEEDS["A"])
    return [row(results, name, runs, arms[base_of(name)]) for name, runs in arms.items() if base_of(name) in arms]


def checked(results: Results) -> tuple[list[list[str]], str]:
    """C's rows and what they say."""
    found = bundle(results)
    arms = {} if not found else arms_of(results, lambda seed: check(found, seed), SEEDS["C"])
    if len(arms) < 2:
        return [], "There is no bundle to check." if found == {} else ""
    base = losses_of(results, arms["base"])
    mean, half = interval([a - b for a, b in zip(losses_of(results, arms["bundle"]), base, strict=True)])
    more = {"base": "", "bundle": f"± {half:.4f}"}
    rows = [row(results, name, runs, arms["base"], more[name]) for name, runs in arms.items()]
    said = "above base's: a contradiction" if mean > 0 else "not above base's: no contradiction"
    return rows, f"The bundle's mean is {said}."


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


def all_arms(change: Change | None, seed: int) -> dict[str, Run]:
    """B's arms as far as they are known, each once."""
    arms = single_arms(seed)
    more = {} if change is None else bundled(change, seed)
    return arms | {name: run for name, run in more.items() if run not in arms.values()}


def decide(results: Results) -> Decision | None:
    """None while base, base on half of the tokens or every other arm is missing."""
    return _decision(results, arms_of(results, lambda seed: all_arms(bundle(results), seed), SEEDS["B"]))


def decide_equal_size(results: Results) -> Decision | None:
    """D; None while B's or its own arms are missing."""
    return _decision(
        results,
        arms_of(results, equal_size, SEEDS["B"]),
        arms_of(results, lambda seed: all_arms(bundle(results), seed), SEEDS["B"]),
    )


def _decision(
    results: Results, arms: dict[str, list[Run]], others: dict[str, list[Run]] | None = None
) -> Decision | None:
    """others: arms over the same seeds that share base and error, and are not judged."""
    every = {**(others or {}), **arms}
    half_way = every.pop(HALF_WAY, None)
    names = ["base", *(name for name in arms if name in every and name != "base")]
    if "base" not in every or half_way is None or len(names) < 2:
        return None
    losses = {name: losses_of(results, runs) for name, runs in every.items()}
    means = {name: statistics.mean(losses[name]) for name in names}
    assert math.isfinite(means["base"]), "base diverged: nothing can be judged by it"
    error, freedom = pooled_error(list(losses.values()))
    compared = sum(map(math.isfinite, means.values())) - 1
    return Decision(
        arms={name: every[name] for name in names},
        gains={name: mean - means["base"] for name, mean in means.items()},
        tokens={name: every[name][0].tokens / every["base"][0].tokens for name in names},
        half=dunnett(compared, freedom) * error * math.sqrt(2 / len(SEEDS["B"])),
        slope=(statistics.mean(losses_of(results, half_way)) - means["base"]) / math.log(2),
    )


def judged_rows(results: Results, found: Decision) -> list[list[str]]:
    rows = []
    for name, runs in found.arms.items():
        least, mean, most = found.ratios(name)
        more = [f"± {found.half:.4f}", f"{mean:.2f} ({least:.2f} to {most:.2f})"]
        shown = more if name != "base" and math.isfinite(mean) else ["", ""]
        rows.append(row(results, name, runs, found.arms["base"], *shown))
    return rows


def better(found: Decision) -> str:
    names = [name for name, gain in found.gains.items() if found.tokens[name] == 1 and gain + found.half < 0]
    return f"Better than base, the entire interval: {', '.join(names) or 'none'}."


def of_equal_size(results: Results) -> tuple[list[list[str]], str]:
    """D's rows and what they say."""
    found = decide_equal_size(results)
    return ([], "") if found is None else (judged_rows(results, found), better(found))


def decided(results: Results) -> tuple[list[list[str]], str]:
    """B's rows and what they say."""
    found, change = decide(results), bundle(results)
    if found is None:
        return [], ""
    lines = [better(found), f"Slope {found.slope:.3f} nats."]
    if change is None or len(found.arms) < len(all_arms(change, SEEDS["B"][0])) - 1:
        lines.insert(0, "Open, as arms are missing.")
    if change == {}:
        lines.append("Nothing helped: there is no bundle.")
    elif change is not None and "bundle" not in found.arms:
        first = bundled(change, SEEDS["B"][0])["bundle"]
        same = [name for name, runs in found.arms.items() if runs[0] == first]
        lines += [f"The bundle is '{name}' alone, chosen and judged by the same runs." for name in same]
    for name, gain in found.gains.items():
        if found.tokens[name] < 1:
            met = "met" if gain <= GOAL else "not met"
            lines.append(f"The bundle on {LESS} of the tokens ends {gain:+.4f} nats against base: goal {met}.")
    return judged_rows(results, found), " ".join(lines)


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def recipe_part(results: Results) -> str:
    screened = screen_rows(results)
    parts = [PICTURE] if screened else []
    for stage, head, (rows, said) in (
        ("A", HEAD, (screened, "")),
        ("B", JUDGED, decided(results)),
        ("C", [*HEAD, "interval"], checked(results)),
        ("D", JUDGED, of_equal_size(results)),
    ):
        runs = [
            run for name, known in recipe_matrix(results) if name.startswith(f"recipe {stage}") for run in known or []
        ]
        made = made_by(results, runs)
        parts += [f"Stage {stage}:", table(head, rows)] if rows else [f"Stage {stage}: not complete yet."]
        parts += [text for text in (said, made) if text]
    return "\n\n".join(parts)
