"""What came out of the runs that judge the rule for rates: the table, the verdict and its interval.

- A cell counts where every rate is there for every seed that it is to have; its losses are means over those seeds.
- Regret: nats above the cell's best, over all rates that were run there.
- The constant is read off between the two rates around it, over the logarithm of the rate.
- The interval of a sum of differences is Student's 95%. A run's own error is what is left of the losses of the cells
  with two seeds once rate and seed are taken out; each loss counts by its weight in the sum, so that a constant that is
  nearly the rule's own rate adds nearly nothing.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from learning_matrix import Results
from learning_rule import ADAMW, CELLS, CONSTANT, FACTORS, Cell, rule_matrix
from learning_stats import dunnett, made_by, pooled_error

NEAR, FAR, SUFFICIENT, ADAMW_NEAR = 0.02, 0.05, 6, 0.05  # nats, nats, cells, nats: as the page says before the runs
PICTURE = "![Nats above each cell's best by the rate over the rule's](learning-rule.png)"
EDGE = 0.02  # share by which the constant may lie beyond the last rate that was run

Weights = dict[float | str, float]  # of a cell's losses, by what the rate is


@dataclass(frozen=True)
class Outcome:
    """A cell's final losses by rate, and by what the rate is, each a list over its seeds."""

    name: str
    rates: dict[float | str, float]
    losses: dict[float | str, list[float]]

    def mean(self, factor: float | str) -> float:
        return statistics.mean(self.losses[factor])

    @property
    def best(self) -> float | str:
        return min(self.losses, key=self.mean)

    def regret(self, factor: float | str) -> float:
        return self.mean(factor) - self.mean(self.best)

    def constant(self) -> Weights | None:
        """The loss at the constant rate as a mean of the two beside it; None where it lies beyond the rates that were
        run.
        """
        by_rate = sorted((rate, factor) for factor, rate in self.rates.items())
        least, most = by_rate[0][0], by_rate[-1][0]
        if not least / (1 + EDGE) <= CONSTANT <= most * (1 + EDGE):
            return None
        rate = min(max(CONSTANT, least), most)
        place = next(i for i in range(1, len(by_rate)) if rate <= by_rate[i][0])
        (low, below), (high, above) = by_rate[place - 1], by_rate[place]
        part = math.log(rate / low) / math.log(high / low)
        return {below: 1 - part, above: part}

    def weighted(self, weights: Weights) -> float:
        return sum(weight * self.mean(factor) for factor, weight in weights.items() if weight)


def against_rule(weights: Weights) -> Weights:
    return {**weights, 1.0: weights.get(1.0, 0.0) - 1.0}


def outcome(results: Results, name: str, optimizer: str = "muon") -> Outcome | None:
    """None while a run is missing."""
    cell = Cell(name, optimizer)
    factors: list[float | str] = [*cell.factors(results), *(["moonlight"] if optimizer == "muon" else [])]
    losses = {factor: found for factor in factors if (found := cell.losses(results, factor)) is not None}
    return (
        Outcome(name, {factor: cell.run(factor).lr for factor in factors}, losses)
        if len(losses) == len(factors)
        else None
    )


def outcomes(results: Results, optimizer: str = "muon") -> list[Outcome]:
    names = CELLS if optimizer == "muon" else ADAMW
    return [found for name in names if (found := outcome(results, name, optimizer)) is not None]


def summed(found: list[Outcome], weights: list[Weights]) -> tuple[float, float | None]:
    """Sum over the cells of their weighted losses, and half its interval; None where no cell has two seeds."""
    total = sum(one.weighted(own) for one, own in zip(found, weights, strict=True))
    error, freedom = pooled_error(*(list(one.losses.values()) for one in found if len(one.losses[1.0]) > 1))
    if not freedom:
        return total, None
    squares = sum(
        weight**2 / len(one.losses[1.0]) for one, own in zip(found, weights, strict=True) for weight in own.values()
    )
    return total, dunnett(1, freedom) * error * math.sqrt(squares)


def rule_table(results: Results) -> str:
    head = ["cell", "seeds", "rule's rate", "at half", "at the rule's", "at twice", "beyond", "Moonlight's", "best at",
            "regret of the rule", "Moonlight's regret", f"regret of {CONSTANT:g}"]  # fmt: skip
    rows = []
    for optimizer in ("muon", "adamw"):
        for found in outcomes(results, optimizer):
            beyond = [factor for factor in found.rates if factor not in (*FACTORS, "moonlight")]
            weights, muon = found.constant(), optimizer == "muon"
            constant = None if weights is None else found.weighted(weights) - found.mean(found.best)
            rows.append(
                [found.name + ("" if muon else ", AdamW"), str(len(found.losses[1.0])), f"{found.rates[1.0]:.3g}",
                 *(f"{found.mean(factor):.3f}" for factor in (0.5, 1.0, 2.0)),
                 " ".join(f"{found.mean(factor):.3f}" for factor in beyond),
                 f"{found.mean('moonlight'):.3f} ({found.rates['moonlight']:.3g})" if muon else "",
                 f"{found.rates[found.best]:.3g}", f"{found.regret(1.0):+.3f}",
                 f"{found.regret('moonlight'):+.3f}" if muon else "",
                 "" if constant is None or not muon else f"{constant:+.3f}"]
            )  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) if rows else ""


def verdict(results: Results) -> str:
    """One of pass, fail, inconclusive, open; with the numbers."""
    found = outcomes(results)
    near = sum(one.regret(1.0) <= NEAR for one in found)
    lines = [f"Complete: {len(found)} of {len(CELLS)} cells."]
    if found:
        lines.append(
            f"In {near} of them the rule's rate is within {NEAR} nats of the best; in the worst it is "
            f"{max(one.regret(1.0) for one in found):.3f} above it."
        )
    clear = []
    moonlight = [(one, against_rule({"moonlight": 1.0})) for one in found]
    constant = [(one, against_rule(weights)) for one in found if (weights := one.constant()) is not None]
    for name, pairs in (("Moonlight's rate", moonlight), (f"a constant {CONSTANT:g}", constant)):
        if not pairs:
            continue
        total, half = summed(*map(list, zip(*pairs, strict=True)))
        text = "no interval: no cell has two seeds yet" if half is None else f"± {half:.3f}"
        lines.append(f"Summed over {len(pairs)} cells, {name} ends {total:+.3f} nats above the rule's ({text}).")
        clear.append(None if half is None or abs(total) <= half else total > 0)
    far = any(one.regret(1.0) > FAR for one in found)
    if len(found) < len(CELLS):
        missed = len(found) - near
        lost = far or missed > len(CELLS) - SUFFICIENT
        state = "fail, whatever the missing cells say" if lost else "open: the missing cells decide"
    elif near < SUFFICIENT or far or False in clear:
        state = "fail"
    elif None in clear:
        state = "inconclusive"
    else:
        state = "pass"
    return "\n".join([*lines, "", f"**Verdict: {state}.**"])


def adamw_verdict(results: Results) -> str:
    found = outcomes(results, "adamw")
    if not found:
        return "AdamW's cells: not run yet."
    worst = max(one.regret(1.0) for one in found)
    kept = "not kept" if worst > ADAMW_NEAR else "kept" if len(found) == len(ADAMW) else "open"
    cells = f"AdamW, {len(found)} of {len(ADAMW)} cells"
    return f"{cells}: the rule's rate is at most {worst:.3f} nats above the best; {kept}."


def missing(results: Results) -> str:
    left = []
    for cell in map(Cell, CELLS):
        runs = [run for seed in cell.seeds for run in cell.runs(results, seed)]
        done = sum(results.final(run) is not None for run in runs)
        left += [f"{cell.name} ({done} of {len(runs)} runs)"] if done < len(runs) else []
    return "Not run yet: " + "; ".join(left) + "." if left else ""


def rule_part(results: Results) -> str:
    picture = PICTURE if outcomes(results) else ""
    parts = [
        picture,
        rule_table(results),
        verdict(results),
        adamw_verdict(results),
        missing(results),
        made_by(results, [run for _, known in rule_matrix(results) for run in known or []]),
    ]
    return "\n\n".join(part for part in parts if part)
