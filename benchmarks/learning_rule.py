"""The runs that judge the rule for rates (moe/optim/rule.py), of which none was part of its making.

- Seven cells, far from each other in tokens, batch, width, depth and experts. In each, the rule's rate, half and twice
  of it, and Moonlight's; where the best of the three (by the mean over the cell's seeds) lies at an edge, one more
  factor of 2 beyond.
- Only the rate differs within a cell: warmup and weight decay are the rule's own in all its runs.
- What has to come out was written into docs/learning.md before the first run. If it does not, FITTED are the cells that
  a constant and one exponent are fitted to, and the others judge them.
- Cells of short runs first, and a second seed for them only when every cell that is not long has its first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from learning_matrix import Results
from learning_run import SEQ_LEN, VOCAB_SIZE, Run

from moe.model.flops import flops_per_token
from moe.optim.rule import learning_rate, moonlight_rate, warmup_steps, weight_decay

WIDE = {"d_model": 128, "expert_hidden": 256}
CELLS: dict[str, dict[str, Any]] = {
    "12.6M tokens": {"share": 16.0},
    "8,192 tokens a step": {"share": 4.0, "batch": 32},
    "512 tokens a step": {"share": 4.0, "batch": 2},
    "width 128": {"share": 4.0, **WIDE},
    "width 256": {"share": 1.0, "d_model": 256, "expert_hidden": 512},
    "width 128, 8 layers": {"share": 4.0, "batch": 16, "n_layers": 8, **WIDE},
    "32 experts, top 4": {"share": 4.0, "n_experts": 32, "top_k": 4, "expert_hidden": 64},
}
FITTED = tuple(CELLS)[:4]
SHORT = ("8,192 tokens a step", "32 experts, top 4", "512 tokens a step", "width 256")
LONGER = ("width 128", "12.6M tokens", "width 128, 8 layers")
ADAMW = ("8,192 tokens a step", "512 tokens a step")
FACTORS = (1.0, 2.0, 0.5)
BEYOND = {2.0: 4.0, 0.5: 0.25}  # the factor to try where this one was best
CONSTANT = 0.008  # the rate that the yamls of short runs have by hand


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


@dataclass(frozen=True)
class Cell:
    """One cell for one optimizer; its runs by their rate, which is a factor of the rule's or "moonlight", and seed."""

    name: str
    optimizer: str = "muon"

    @property
    def seeds(self) -> tuple[int, ...]:
        return (0, 1) if self.optimizer == "muon" and self.name in SHORT else (0,)

    def run(self, factor: float | str, seed: int = 0) -> Run:
        base = Run(
            optimizer=self.optimizer,
            lr=0,
            seed=seed,
            router="muon" if self.optimizer == "muon" else "adamw",
            **CELLS[self.name],
        )
        batch = base.batch * SEQ_LEN
        rate = learning_rate(d_model=base.d_model, tokens=base.tokens, batch=batch, optimizer=self.optimizer)
        base = replace(
            base,
            warmup=rounded(warmup_steps(base.steps, optimizer=self.optimizer) / base.steps),
            weight_decay=rounded(weight_decay(rate, steps=base.steps)),
        )
        if isinstance(factor, str):
            flops = flops_per_token(**base.shape(VOCAB_SIZE), seq_len=SEQ_LEN) * base.tokens
            return replace(base, lr=rounded(moonlight_rate(flops)))
        return replace(base, lr=rounded(rate * factor))

    def losses(self, results: Results, factor: float | str) -> list[float] | None:
        """Final losses over all seeds; None while one is missing."""
        found = [results.final(self.run(factor, seed)) for seed in self.seeds]
        known = [loss for loss in found if loss is not None]
        return known if len(known) == len(found) else None

    def factors(self, results: Results) -> list[float]:
        """The rule's and its neighbours; and one more beyond an edge that was best, by the mean over all seeds."""
        means = {factor: mean(found) for factor in FACTORS if (found := self.losses(results, factor)) is not None}
        best = min(means, key=lambda factor: means[factor]) if len(means) == len(FACTORS) else None
        return [*FACTORS, *(BEYOND[factor] for factor in BEYOND if factor == best)]

    def runs(self, results: Results, seed: int) -> list[Run]:
        """Twice and half of the rule's before Moonlight's, which no other cell's next run waits for."""
        moonlight = [self.run("moonlight", seed)] if self.optimizer == "muon" else []
        return [*(self.run(factor, seed) for factor in self.factors(results)), *moonlight]


def rule_cells() -> list[tuple[Cell, int]]:
    """Each cell with each of its seeds, in the order in which they are run."""
    first = [(Cell(name), 0) for name in (*SHORT, *LONGER[:2])]
    second = [(Cell(name), 1) for name in SHORT]
    adamw = [(Cell(name, "adamw"), 0) for name in ADAMW]
    return [*first, adamw[0], *second, (Cell(LONGER[2]), 0), adamw[1]]


def rule_matrix(results: Results) -> Iterator[tuple[str, list[Run] | None]]:
    """As learning_matrix.matrix; no stage waits for another."""
    for cell, seed in rule_cells():
        optimizer = ", AdamW" if cell.optimizer == "adamw" else ""
        yield f"the rule: {cell.name}{optimizer}, seed {seed}", cell.runs(results, seed)
