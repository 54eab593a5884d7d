"""Which recipe learns more from each token: stage A screens, B decides, C checks the sign at twice the width, D takes
B's finer experts at base's size.

- Every run has the rule's rate, warmup and weight decay for its own width, tokens and batch (moe/optim/rule.py).
- All arms of a stage cost the same FLOPs a token, but for the routers', which are counted: where a part is added, the
  experts' width pays.
- Seeds are fresh in A, B and C: what a stage has chosen is not judged by the numbers that chose it. D chooses nothing
  and has B's seeds, whose base it is held against.
- What has to come out stands in docs/learning.md, written down before the first of these runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from learning_matrix import Results
from learning_rule import WIDE, rounded
from learning_run import HEAD_DIM, SEQ_LEN, Run

from moe.optim.rule import learning_rate, warmup_steps, weight_decay

SCREEN, DECIDE = 4.0, 16.0  # times learning_run.STEPS: 3.1M and 12.6M tokens
SEEDS = {"A": (0, 1, 2), "B": (10, 11, 12, 13), "C": (20, 21, 22)}
HELPS = -0.01  # nats against base, the mean of a stage's seeds, from which on an arm of A goes into the bundle
MOST_PARTS = 3  # of A in the bundle
LESS = 0.75  # of the tokens, for the bundle
ACTIVE = 256  # the sum of the widths of a token's experts, the shared one's too

Change = dict[str, Any]
PARTS: dict[str, Change] = {
    "init by fan-in": {"init": "fan_in"},
    "shared expert": {"n_shared_experts": 1},
    "sigmoid scores, quantile bias": {"balance": "quantile"},
}
KV_HEADS = {n: f"{n} of 4 key-value heads, width 128" for n in (1, 2, 4)}  # 2 is the recipe's
EXPERTS: dict[str, Change] = {
    "32 experts, top 4": {"n_experts": 32, "top_k": 4},
    "64 experts, top 8": {"n_experts": 64, "top_k": 8},
}
EQUAL_SIZE: dict[str, Change] = {"16 experts, top 4": {"n_experts": 16, "top_k": 4}}  # base's number of parameters
HALF_WAY = "base, half of the tokens"
DECAY: dict[str, Change] = {"linear decay to 0.05": {"schedule": "linear"}}


def run_of(share: float, seed: int, change: Change, *, wide: bool = False) -> Run:
    """The recipe with a change, at the rule's rate; its experts are as wide as equal FLOPs allow. wide: at twice the
    width.

    A token's experts, the shared one among them, have ACTIVE together, with three matrices each; a key-value head has
    two, of HEAD_DIM.
    """
    times = WIDE["d_model"] // Run.d_model if wide else 1
    run = Run(optimizer="muon", lr=0, seed=seed, share=share, router="muon", d_model=Run.d_model * times, **change)
    more_heads = run.shape(1)["n_kv_heads"] - run.d_model // HEAD_DIM // 2
    width = ACTIVE * times - 2 * HEAD_DIM * more_heads / 3
    batch = run.batch * SEQ_LEN
    rate = learning_rate(d_model=run.d_model, tokens=run.tokens, batch=batch)
    return replace(
        run,
        expert_hidden=round(width / (run.top_k + run.n_shared_experts)),
        lr=rounded(rate),
        warmup=rounded(warmup_steps(run.steps) / run.steps),
        weight_decay=rounded(weight_decay(rate, steps=run.steps)),
    )


def screen(seed: int) -> dict[str, Run]:
    """Stage A: arms by name, each against the base of its own width."""
    arms = {"base": {}, **PARTS}
    found = {name: run_of(SCREEN, seed, change) for name, change in arms.items()}
    heads = {name: run_of(SCREEN, seed, {"n_kv_heads": n}, wide=True) for n, name in KV_HEADS.items()}
    return found | heads


def base_of(name: str) -> str:
    """The arm of stage A that another is held against: that of its own width."""
    return KV_HEADS[2] if name in KV_HEADS.values() else "base"


def gain(results: Results, runs: list[Run], bases: list[Run]) -> float | None:
    """Mean difference of the final losses, seed by seed, infinite where an arm diverged; None while one is missing."""
    mine, other = [[results.final(run) for run in group] for group in (runs, bases)]
    pairs = [(one, two) for one, two in zip(mine, other, strict=True) if one is not None and two is not None]
    assert all(math.isfinite(base) for _, base in pairs), "base diverged: nothing can be judged by it"
    return statistics.mean(one - two for one, two in pairs) if len(pairs) == len(runs) else None


def screened(results: Results) -> Change | None:
    """What of A goes into the bundle: the best arms that help. None while A is not done.

    All key-value heads, where they help: at width 64 that is 2 of 2, and 1 of 2 is the recipe's already.
    """
    by_seed = [screen(seed) for seed in SEEDS["A"]]
    changes = {**PARTS, KV_HEADS[4]: {"n_kv_heads": 2}}
    gains = {}
    for name in changes:
        found = gain(results, [arms[name] for arms in by_seed], [arms[base_of(name)] for arms in by_seed])
        if found is None:
            return None
        gains[name] = found
    best = sorted((name for name in gains if gains[name] <= HELPS), key=lambda name: gains[name])[:MOST_PARTS]
    return {key: value for name in best for key, value in changes[name].items()}


def single_arms(seed: int) -> dict[str, Run]:
    """Stage B but for the bundle. Base on half of the tokens gives the slope that turns nats into tokens."""
    arms = {name: run_of(DECIDE, seed, change) for name, change in {"base": {}, **EXPERTS, **DECAY}.items()}
    return arms | {HALF_WAY: run_of(DECIDE / 2, seed, {})}


def bundle(results: Results) -> Change | None:
    """What helped in A, with the better of the finer experts and the decay where their mean in B is below base's; None
    while one of these is missing. A shared expert stands in the place of one of a token's.
    """
    found = screened(results)
    by_seed = [single_arms(seed) for seed in SEEDS["B"]]
    bases = [arms["base"] for arms in by_seed]
    gains = {name: gain(results, [arms[name] for arms in by_seed], bases) for name in (*EXPERTS, *DECAY)}
    if found is None or None in gains.values():
        return None
    known = {name: value for name, value in gains.items() if value is not None and value < 0}
    finer = min((name for name in EXPERTS if name in known), key=lambda name: known[name], default=None)
    for name in ([finer] if finer else []) + [name for name in DECAY if name in known]:
        found |= {**EXPERTS, **DECAY}[name]
    if finer and "n_shared_experts" in found:
        found["top_k"] -= found["n_shared_experts"]
    return found


def bundled(change: Change, seed: int) -> dict[str, Run]:
    """Stage B's last arms; none where nothing helped."""
    if not change:
        return {}
    return {"bundle": run_of(DECIDE, seed, change), "bundle, 0.75 of the tokens": run_of(LESS * DECIDE, seed, change)}


def check(change: Change, seed: int) -> dict[str, Run]:
    """Stage C; nothing where there is no bundle."""
    if not change:
        return {}
    wide = {**change, "n_kv_heads": 4} if "n_kv_heads" in change else change
    return {"base": run_of(DECIDE, seed, {}, wide=True), "bundle": run_of(DECIDE, seed, wide, wide=True)}


def equal_size(seed: int) -> dict[str, Run]:
    """Stage D."""
    return {name: run_of(DECIDE, seed, change) for name, change in EQUAL_SIZE.items()}


def recipe_matrix(results: Results) -> Iterator[tuple[str, list[Run] | None]]:
    """As learning_matrix.matrix: a stage whose arms an earlier one decides is None until then."""
    yield "recipe A, 3.1M tokens", [run for seed in SEEDS["A"] for run in screen(seed).values()]
    known = screened(results) is not None
    singles = [run for seed in SEEDS["B"] for run in single_arms(seed).values()]
    yield "recipe B, 12.6M tokens", singles if known else None
    found = bundle(results) if known else None
    for name, make, seeds in (
        ("recipe B, the bundle", bundled, SEEDS["B"]),
        ("recipe C, width 128", check, SEEDS["C"]),
    ):
        yield name, None if found is None else [run for seed in seeds for run in make(found, seed).values()]
    yield "recipe D, equal size", [run for seed in SEEDS["B"] for run in equal_size(seed).values()] if known else None
