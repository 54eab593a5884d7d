"""What benchmarks/upcycle.py trains: its arms, the runs of each, and which of them can be made now."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from learning_matrix import SEEDS, Results
from learning_run import SEQ_LEN, Run

from moe.model.flops import flops_per_token
from moe.use.export.upcycle import Recipe

RECIPE = Recipe(copies=8, pieces=4)
RATE, RATES = 0.016, (0.016, 0.008, 0.004, 0.002)  # from random weights; tried from trained ones
BASE = Run(optimizer="muon", lr=RATE, router="muon", n_experts=1, top_k=1, expert_hidden=256)
EXPERTS: dict[str, Any] = {
    "n_experts": RECIPE.copies * RECIPE.pieces,
    "top_k": RECIPE.active * RECIPE.pieces,
    "expert_hidden": BASE.expert_hidden // RECIPE.pieces,
}


def flops(run: Run, data_vocab: int = 2048) -> float:
    return flops_per_token(**run.shape(data_vocab), seq_len=SEQ_LEN)


def arms() -> dict[str, Run]:
    """By name; the rate of the first two is to be swept."""
    experts = replace(BASE, **EXPERTS)
    share = round(flops(BASE) / flops(experts), 3)  # of the dense model's tokens, in as many FLOPs
    return {
        "dense, trained further": replace(BASE, start="dense"),
        "upcycled": replace(experts, share=share, start="upcycled"),
        "experts from scratch": replace(experts, share=share),
        "experts from scratch, the FLOPs of both parts": replace(experts, share=2 * share),
    }


def swept(results: Results, run: Run) -> tuple[list[Run], Run | None]:
    """The runs at all rates on the first seed, and the best of them; None while one is missing."""
    runs = [replace(run, lr=rate) for rate in RATES]
    return runs, results.best(runs)


def chosen(results: Results) -> dict[str, Run | None]:
    """Each arm at its rate; None while that is not known."""
    return {name: run if run.start == "random" else swept(results, run)[1] for name, run in arms().items()}


def pending(results: Results) -> list[Run]:
    """What can be made now. What starts from the dense model waits for that of its seed."""
    wanted = [replace(BASE, seed=seed) for seed in SEEDS]
    wanted += [run for arm in arms().values() if arm.start != "random" for run in swept(results, arm)[0]]
    wanted += [replace(run, seed=seed) for seed in SEEDS for run in chosen(results).values() if run is not None]
    missing = [run for run in dict.fromkeys(wanted) if results.get(run) is None]
    return [run for run in missing if run.start == "random" or results.get(replace(BASE, seed=run.seed))]
