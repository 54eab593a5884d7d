"""Which runs benchmarks/learning.py makes, in order of what they tell, and which of them are done.

- A later stage is made of what an earlier one found (the best rate), so it is known only when that one is done. Nothing
  but the results' files is remembered: killed and started again, the driver continues with the first run that has none.
- A sweep whose best rate is at its edge grows by another rate on that side.
- AdamW gets more tuning than Muon, whose rate alone is swept: the comparison is to favour the older method. Its warmup
  and its rate depend on each other, so it is tuned move by move. On LONG times the tokens both are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from learning_run import Run

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
SHARE = 0.5  # of AdamW's tokens, for Muon
LESS = (0.35, 0.25, 0.18)  # as long as it still ends below AdamW
MORE = (0.65, 0.75)  # to complete the curve, or where it does not
LONG = 4.0  # times the tokens
LONG_SHARES = (0.75, 0.5)  # of those, for Muon
SEEDS = (0, 1, 2)
MORE_SEEDS = (*SEEDS, 3, 4)  # for experts against none on LONG: with three the interval ended 0.003 nats short of zero
WIDE = {"d_model": 128, "expert_hidden": 256}
WARMUPS = (0.05, 0.1, 0.2, 0.4)
DENSE_ACTIVE: dict[str, Any] = {"n_experts": 1, "top_k": 1, "expert_hidden": 256}
DENSE_TOTAL: dict[str, Any] = {"n_experts": 1, "top_k": 1, "expert_hidden": 1024}
ABLATIONS: dict[str, dict[str, Any]] = {
    "no document mask": {"document_mask": False},
    "no QK-norm": {"qk_norm": False},
    "balance over the microbatch": {"balance": "microbatch"},
    "balance over a running mean": {"balance": "running"},
    "router under Muon": {"router": "muon"},
    "top 4 of 32 experts": {"n_experts": 32, "top_k": 4, "expert_hidden": 64},
}


class Results:
    """The finished runs in a folder, one JSON each, written complete or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: dict[str, dict[str, Any]] = {}

    def get(self, run: Run) -> dict[str, Any] | None:
        path = self.folder / f"{run.name}.json"
        if run.name not in self.read and path.is_file():
            self.read[run.name] = json.loads(path.read_text(encoding="utf-8"))
        return self.read.get(run.name)

    def final(self, run: Run) -> float | None:
        """Its final validation loss, infinite where it diverged; None where it was not made yet."""
        found = self.get(run)
        if found is None:
            return None
        return float("inf") if found["final"] is None else found["final"]

    def finished(self) -> list[Run]:
        """All runs in the folder, also those that no longer stand in the matrix."""
        names = sorted(path.stem for path in self.folder.glob("*.json"))
        fields = [field.name for field in dataclasses.fields(Run)]
        found = [json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8")) for name in names]
        return [Run(**{field: one[field] for field in fields if field in one}) for one in found]

    def best(self, runs: list[Run]) -> Run | None:
        """The one of least final loss; None while one of them is missing, or of none."""
        losses = [(self.final(run), run) for run in runs]
        known = [(loss, run) for loss, run in losses if loss is not None]
        return min(known, key=lambda pair: pair[0])[1] if known and len(known) == len(losses) else None

    def put(self, run: Run, found: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".{run.name}.partial"
        aside.write_text(json.dumps(found) + "\n", encoding="utf-8")
        aside.rename(self.folder / f"{run.name}.json")


def sweep(results: Results, base: Run, first: tuple[float, ...] = RATES) -> list[Run]:
    """The first rates, and more beyond an edge that was best."""
    rates = sorted(first)
    while best := results.best([replace(base, lr=rate) for rate in rates]):
        if best.lr == rates[0]:
            rates.insert(0, rates[0] / 2)
        elif best.lr == rates[-1]:
            rates.append(rates[-1] * 2)
        else:
            break
    return [replace(base, lr=rate) for rate in rates]


def neighbours(run: Run) -> list[Run]:
    """Settings one move away. A long warmup bears a higher rate, so both together are a move too. beta2 is AdamW's;
    under Muon it is the rate of AdamW's part that is moved instead.
    """
    place = WARMUPS.index(run.warmup)
    longer, shorter = WARMUPS[min(place + 1, len(WARMUPS) - 1)], WARMUPS[max(place - 1, 0)]
    own: list[dict[str, float]] = [{"beta2": 0.99 if run.beta2 == 0.95 else 0.95}]
    if run.optimizer == "muon":
        own = [{"adamw_ratio": run.adamw_ratio * 2}, {"adamw_ratio": run.adamw_ratio / 2}]
    moves: list[dict[str, float]] = [
        {"lr": run.lr * 2, "warmup": longer},
        {"warmup": longer},
        {"lr": run.lr * 2},
        *own,
        {"weight_decay": 0.01 if run.weight_decay == 0.1 else 0.1},
        {"lr": round(run.lr * 1.4, 7)},
        {"lr": round(run.lr * 0.7, 7)},
        {"warmup": shorter},
    ]
    return [found for move in moves if (found := replace(run, **move)) != run]


def tuned(results: Results, start: Run | None) -> tuple[list[Run], Run | None]:
    """The runs that tune an optimizer, and the best of all; None while one is missing.

    From the best rate of a sweep to the first neighbour that is better, until none is. While one is missing, those
    after it are among the runs too: other processes need not wait for it.
    """
    if start is None:
        return [], None
    runs: list[Run] = []
    best, moved = start, True
    while moved:
        moved = False
        least = results.final(best)
        assert least is not None
        moves = neighbours(best)
        for place, run in enumerate(moves):
            loss = results.final(run)
            if loss is None:
                return runs + moves[place:], None
            runs += [run] if run not in runs else []
            if loss < least:
                best, moved = run, True
                break
    return runs, best


def tuned_adamw(results: Results) -> tuple[list[Run], Run | None]:
    return tuned(results, results.best(sweep(results, Run(optimizer="adamw", lr=0))))


def best_muon(results: Results) -> Run | None:
    return results.best(sweep(results, Run(optimizer="muon", lr=0)))


def wide_sweep(results: Results) -> list[Run]:
    """At twice the width, around the rate that was best; empty until that is known."""
    best = best_muon(results)
    if best is None:
        return []
    return sweep(results, replace(best, lr=0, **WIDE), (RATES[0], best.lr / 2, best.lr, best.lr * 2))


def seeds(*runs: Run) -> list[Run]:
    return [replace(run, seed=seed) for run in runs for seed in SEEDS]


@dataclass(frozen=True)
class Comparison:
    """AdamW on a number of tokens, and Muon on shares of them, from all."""

    adamw: Run
    muons: list[Run]

    def share(self, muon: Run) -> float:
        return muon.share / self.adamw.share


def muon_budgets(results: Results) -> list[float]:
    """Shares of AdamW's tokens that Muon is given: all, SHARE, and of LESS those that it takes to fall behind."""
    adamw, muon = tuned_adamw(results)[1], best_muon(results)
    shares = [1.0, SHARE]
    if adamw is None or muon is None:
        return shares
    for less in LESS:
        ahead = [
            (results.final(replace(muon, seed=seed, share=shares[-1])), results.final(replace(adamw, seed=seed)))
            for seed in SEEDS
        ]
        if not any(mine is not None and other is not None and mine <= other for mine, other in ahead):
            break
        shares.append(less)
    return shares


Stage = Callable[[Results], list[Run] | None]


def _rates(results: Results) -> list[Run]:
    return sweep(results, Run(optimizer="adamw", lr=0)) + sweep(results, Run(optimizer="muon", lr=0))


def _adamw(results: Results) -> list[Run] | None:
    return tuned_adamw(results)[0] or None


def _budgets(results: Results) -> list[Run] | None:
    adamw, muon = tuned_adamw(results)[1], best_muon(results)
    if muon is None:
        return None
    given = seeds(*(replace(muon, share=share) for share in muon_budgets(results)))
    return given if adamw is None else seeds(adamw) + given


def long_sweeps(results: Results) -> dict[str, list[Run]]:
    """AdamW and Muon on LONG times the tokens, by rate: the best one falls with the compute spent."""
    found = {"adamw": tuned_adamw(results)[1], "muon": best_muon(results)}
    return {
        name: sweep(results, replace(run, share=LONG, lr=0), (run.lr / 2, run.lr))
        for name, run in found.items()
        if run is not None
    }


def long_tuned(results: Results) -> dict[str, tuple[list[Run], Run | None]]:
    return {name: tuned(results, results.best(found)) for name, found in long_sweeps(results).items()}


def _long(results: Results) -> list[Run] | None:
    sweeps = long_sweeps(results)
    if len(sweeps) < 2:
        return None
    runs = [run for found in sweeps.values() for run in found]
    return runs + [run for found, _ in long_tuned(results).values() for run in found]


def _long_budgets(results: Results) -> list[Run] | None:
    compared = long_comparison(results)
    return None if compared is None else seeds(compared.adamw, *compared.muons)


def comparison(results: Results) -> Comparison | None:
    """None while AdamW is not tuned."""
    adamw, muon = tuned_adamw(results)[1], best_muon(results)
    if adamw is None or muon is None:
        return None
    shares = sorted({*muon_budgets(results), *MORE}, reverse=True)
    return Comparison(adamw, [replace(muon, share=share) for share in shares])


def long_comparison(results: Results) -> Comparison | None:
    """The same on LONG times the tokens, both tuned there; None while one is not."""
    found = {name: best for name, (_, best) in long_tuned(results).items()}
    adamw, muon = found.get("adamw"), found.get("muon")
    if adamw is None or muon is None:
        return None
    return Comparison(adamw, [replace(muon, share=LONG * share) for share in (1.0, *LONG_SHARES)])


def long_dense(muon: Run) -> dict[str, Run]:
    """The recipe and the dense model of as many active parameters, both on LONG times the tokens."""
    long = replace(muon, share=LONG)
    return {"recipe": long, "dense": replace(long, **DENSE_ACTIVE)}


def _with_muon(make: Callable[[Run], list[Run]]) -> Stage:
    def stage(results: Results) -> list[Run] | None:
        muon = best_muon(results)
        return None if muon is None else make(muon)

    return stage


STAGES: dict[str, Stage] = {
    "learning rates": _rates,
    "AdamW's warmup, beta2, weight decay, finer rate": _adamw,
    "Muon on fewer tokens, three seeds": _budgets,
    "dense": _with_muon(lambda muon: [*seeds(replace(muon, **DENSE_ACTIVE)), replace(muon, **DENSE_TOTAL)]),
    "parts of the recipe": _with_muon(lambda muon: [replace(muon, **change) for change in ABLATIONS.values()]),
    "learning rates at twice the width": lambda results: wide_sweep(results) or None,
    "four times the tokens, both tuned": _long,
    "four times the tokens, Muon on fewer, three seeds": _long_budgets,
    "four times the tokens, dense, five seeds": _with_muon(
        lambda muon: [replace(run, seed=seed) for run in long_dense(muon).values() for seed in MORE_SEEDS]
    ),
    "Muon on 0.65 and 0.75 of the tokens": _with_muon(
        lambda muon: seeds(*(replace(muon, share=share) for share in MORE))
    ),
    "parts of the recipe, more seeds": _with_muon(
        lambda muon: [run for change in ABLATIONS.values() for run in seeds(replace(muon, **change))[1:]]
    ),
    "dense of equal size, more seeds": _with_muon(lambda muon: seeds(replace(muon, **DENSE_TOTAL))[1:]),
}


def matrix(results: Results) -> Iterator[tuple[str, list[Run] | None]]:
    """(stage, its runs as far as they are known; None where an earlier stage decides them)."""
    for name, stage in STAGES.items():
        yield name, stage(results)
