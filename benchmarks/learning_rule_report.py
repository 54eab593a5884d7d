"""What came out of the runs that judge the rule for rates: the table, the verdict and its interval.

- A cell counts where the three rates around the rule's and Moonlight's are there for every seed that has any; its
  losses are means over those seeds.
- Regret: nats above the cell's best, over all rates that were run there.
- The constant is read off between the two rates around it, over the logarithm of the rate.
- The interval of a sum of differences: Student's 95%, by the spread between the seeds of the cells that have two.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from learning_matrix import Results
from learning_rule import ADAMW, CELLS, CONSTANT, FACTORS, Cell, rule_matrix

STUDENT_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # by degrees of freedom
NEAR, FAR, SUFFICIENT, ADAMW_NEAR = 0.02, 0.05, 6, 0.05  # nats, nats, cells, nats: as the page says before the runs
PICTURE = "![Nats above each cell's best by the rate over the rule's](learning-rule.png)"
EDGE = 0.02  # share by which the constant may lie beyond the last rate that was run


@dataclass(frozen=True)
class Outcome:
    """A cell's final losses by rate, and by what the rate is, each a list over `seeds`."""

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

    def constants(self) -> list[float] | None:
        """Losses at the constant rate, seed by seed; None where it lies beyond the rates that were run."""
        by_rate = sorted((rate, self.losses[factor]) for factor, rate in self.rates.items())
        least, most = by_rate[0][0], by_rate[-1][0]
        if not least / (1 + EDGE) <= CONSTANT <= most * (1 + EDGE):
            return None
        rate = min(max(CONSTANT, least), most)
        place = next(i for i in range(1, len(by_rate)) if rate <= by_rate[i][0])
        (low, below), (high, above) = by_rate[place - 1], by_rate[place]
        part = math.log(rate / low) / math.log(high / low)
        return [(1 - part) * one + part * other for one, other in zip(below, above, strict=True)]


def outcome(results: Results, name: str, optimizer: str = "muon") -> Outcome | None:
    """None while a rate is missing."""
    cells = [Cell(name, optimizer, seed) for seed in (0, 1)]
    begun = [cell for cell in cells if all(results.final(cell.run(factor)) is not None for factor in FACTORS)]
    if not begun:
        return None
    factors: list[float | str] = [*begun[0].factors(results), *(["moonlight"] if optimizer == "muon" else [])]
    found = {factor: [results.final(cell.run(factor)) for cell in begun] for factor in factors}
    complete = [i for i in range(len(begun)) if all(losses[i] is not None for losses in found.values())]
    if not complete:
        return None
    losses = {factor: [loss for i in complete if (loss := values[i]) is not None] for factor, values in found.items()}
    return Outcome(name, {factor: begun[0].run(factor).lr for factor in factors}, losses)


def outcomes(results: Results, optimizer: str = "muon") -> list[Outcome]:
    names = CELLS if optimizer == "muon" else ADAMW
    return [found for name in names if (found := outcome(results, name, optimizer)) is not None]


def summed(differences: list[list[float]]) -> tuple[float, float | None]:
    """Sum over the cells of the mean over seeds, and half its interval; None where no cell has two seeds."""
    total = sum(map(statistics.mean, differences))
    spread = [statistics.variance(values) for values in differences if len(values) > 1]
    if not spread:
        return total, None
    variance = statistics.mean(spread)
    return total, STUDENT_95[len(spread)] * math.sqrt(sum(variance / len(values) for values in differences))


def rule_table(results: Results) -> str:
    head = ["cell", "seeds", "rule's rate", "at half", "at the rule's", "at twice", "beyond", "Moonlight's", "best at",
            "regret of the rule", "Moonlight's regret", f"regret of {CONSTANT:g}"]  # fmt: skip
    rows = []
    for optimizer in ("muon", "adamw"):
        for found in outcomes(results, optimizer):
            beyond = [factor for factor in found.rates if factor not in (*FACTORS, "moonlight")]
            constants = found.constants()
            constant = None if constants is None else statistics.mean(constants) - found.mean(found.best)
            muon = optimizer == "muon"
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
    for name, others in (("Moonlight's rate", _moonlight(found)), (f"a constant {CONSTANT:g}", _constants(found))):
        if not others:
            continue
        total, half = summed(others)
        text = "no interval: no cell has two seeds yet" if half is None else f"± {half:.3f}"
        lines.append(f"Summed over {len(others)} cells, {name} ends {total:+.3f} nats against the rule ({text}).")
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


def _moonlight(found: list[Outcome]) -> list[list[float]]:
    return [[mine - rule for mine, rule in zip(one.losses["moonlight"], one.losses[1.0], strict=True)] for one in found]


def _constants(found: list[Outcome]) -> list[list[float]]:
    both = [(one.constants(), one.losses[1.0]) for one in found]
    return [[mine - rule for mine, rule in zip(made, rules, strict=True)] for made, rules in both if made is not None]


def adamw_verdict(results: Results) -> str:
    found = outcomes(results, "adamw")
    if not found:
        return "AdamW's cells: not run yet."
    worst = max(one.regret(1.0) for one in found)
    kept = "not kept" if worst > ADAMW_NEAR else "kept" if len(found) == len(ADAMW) else "open"
    cells = f"AdamW, {len(found)} of {len(ADAMW)} cells"
    return f"{cells}: the rule's rate is at most {worst:.3f} nats above the best; {kept}."


def missing(results: Results) -> str:
    cells = [Cell(name) for name in CELLS]
    left = [f"{cell.name} ({sum(results.final(run) is not None for run in cell.runs(results))} of "
            f"{len(cell.runs(results))} runs)" for cell in cells if outcome(results, cell.name) is None]  # fmt: skip
    return "Not run yet: " + "; ".join(left) + "." if left else ""


def made_by(results: Results) -> str:
    """The code that made the runs: one commit, or it is said that they are several."""
    runs = [run for _, known in rule_matrix(results) for run in known or []]
    commits = sorted({found["commit"] for run in runs if (found := results.get(run)) is not None})
    if not commits:
        return ""
    several = "" if len(commits) == 1 else ", which are several: differences between their runs may be the code's"
    return f"{sum(results.get(run) is not None for run in runs)} runs, made by commit {', '.join(commits)}{several}."


def rule_part(results: Results) -> str:
    picture = PICTURE if outcomes(results) else ""
    parts = [picture, rule_table(results), verdict(results), adamw_verdict(results), missing(results), made_by(results)]
    return "\n\n".join(part for part in parts if part)
