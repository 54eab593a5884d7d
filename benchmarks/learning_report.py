"""Tables and pictures of docs/learning.md and docs/learning-older.md, from the results of benchmarks/learning.py alone.

A row that was not run says so; a row of one seed has no interval.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from learning_matrix import (
    DENSE_ACTIVE,
    LONG,
    SEEDS,
    Comparison,
    Results,
    best_muon,
    comparison,
    long_comparison,
    long_dense,
    long_sweeps,
    long_tuned,
    matrix,
    sweep,
    tuned_adamw,
    wide_sweep,
)
from learning_recipe_report import recipe_part
from learning_rule_report import rule_part
from learning_run import BATCH, SEQ_LEN, Run
from learning_stats import differences, interval, over_seeds, recipe_rows, token_shares

PAGES = ("learning.md", "learning-older.md")
NOT_RUN = "not run"
NAMES = {"adamw": "AdamW", "muon": "Muon"}
GOAL_TOKENS, GOAL_RATE, GOAL_NATS = 0.75, 1e-3, 0.02


def shown(values: list[float], digits: int = 3, sign: str = "") -> str:
    if not values:
        return NOT_RUN
    mean, half = interval(values)
    return f"{mean:{sign}.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def shown_shares(found: list[float], least: float) -> str:
    if not found:
        return NOT_RUN
    if math.inf in found:
        return "not reached by every seed"
    if 0.0 in found:
        return f"below {least:g} in {found.count(0.0)} of {len(found)} seeds"
    return shown(found, 2)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines)


def rate_table(results: Results) -> str:
    runs = {
        "AdamW": sweep(results, Run(optimizer="adamw", lr=0)),
        "Muon": sweep(results, Run(optimizer="muon", lr=0)),
        "Muon, twice the width": wide_sweep(results),
    }
    rows = []
    for rate in sorted({run.lr for found in runs.values() for run in found}):
        row = [f"{rate:g}"]
        for found in runs.values():
            loss = {run.lr: results.final(run) for run in found}.get(rate)
            best = results.best(found)
            row.append("" if loss is None else f"**{loss:.3f}**" if best and best.lr == rate else f"{loss:.3f}")
        rows.append(row)
    return table(["learning rate", *runs], rows)


def tuning_table(results: Results, optimizer: str, share: float, best: Run | None) -> str:
    """Every setting of an optimizer that was tried on a share of the tokens, the best first."""
    own = "rate of AdamW's part" if optimizer == "muon" else "beta2"
    tuned = {"optimizer", "lr", "warmup", "beta2", "weight_decay", "adamw_ratio"}

    def is_plain(run: Run) -> bool:
        settings = {name: getattr(run, name) for name in tuned}
        return run.optimizer == optimizer and run == Run(**settings, share=share)

    rows = []
    runs = [run for run in results.finished() if is_plain(run)]
    for run in sorted(runs, key=lambda run: results.final(run) or math.inf):
        text = f"{results.final(run):.3f}"
        of_its_own = run.lr * run.adamw_ratio if run.optimizer == "muon" else run.beta2
        text = f"**{text}**" if run == best else text
        rows.append([f"{run.lr:g}", f"{run.warmup:g}", f"{of_its_own:g}", f"{run.weight_decay:g}", text])
    return table(["rate", "warmup (share of the run)", own, "weight decay", "final loss"], rows)


def adamw_table(results: Results) -> str:
    return tuning_table(results, "adamw", 1.0, tuned_adamw(results)[1])


def comparison_table(results: Results, compared: Comparison) -> str:
    rows = []
    for name, run in [("AdamW, tuned", compared.adamw), *(("Muon", run) for run in compared.muons)]:
        losses = over_seeds(results, run, SEEDS)
        against = "" if run == compared.adamw else shown(differences(results, run, compared.adamw), sign="+")
        rows.append(
            [name, f"{run.lr:g}", f"{compared.share(run):g}", f"{run.tokens:,}", str(len(losses)),
             shown(list(losses.values())), against]
        )  # fmt: skip
    head = ["optimizer", "rate", "share of the tokens", "tokens", "seeds", "final loss", "against AdamW on all tokens"]
    return table(head, rows)


def budget_table(results: Results) -> str:
    compared = comparison(results)
    if compared is None:
        return f"Muon on fewer tokens: {NOT_RUN} yet."
    return comparison_table(results, compared) + "\n\n" + reached(results, compared)


def long_table(results: Results) -> str:
    if len(long_sweeps(results)) < 2:
        return f"Four times the tokens: {NOT_RUN} yet."
    parts = []
    compared = long_comparison(results)
    if compared is not None:
        parts += [comparison_table(results, compared), reached(results, compared)]
    for name, (_, best) in long_tuned(results).items():
        parts += [f"What was tried there with {NAMES[name]}:", tuning_table(results, name, LONG, best)]
    return "\n\n".join(parts)


def dense_gains(results: Results) -> dict[str, list[float]]:
    """Nats by which the dense model of equal active parameters ends above the MoE, by how they were trained."""
    muon = best_muon(results)
    if muon is None:
        return {}
    long = long_dense(muon)
    return {
        "": differences(results, replace(muon, **DENSE_ACTIVE), muon),
        f", on {LONG:g} times the tokens": differences(results, long["dense"], long["recipe"]),
    }


def reached(results: Results, compared: Comparison) -> str:
    found = results.get(compared.muons[0])
    if found is None:
        return f"Share of AdamW's tokens that Muon needs: {NOT_RUN}."
    extra = found["optimizer_flops"] / found["flops"]
    needed, least = token_shares(results, compared), compared.share(compared.muons[-1])
    with_extra = shown_shares([share * (1 + extra) for share in needed], least * (1 + extra))
    return (
        f"Share of AdamW's tokens with which Muon ends at AdamW's final loss: {shown_shares(needed, least)}.\n"
        "The model's FLOPs are in the same ratio. The products of Muon's own iteration come on top, "
        f"{extra:.0%} of the model's at\n{BATCH * SEQ_LEN:,} tokens a step and ever less with more; with them the "
        f"ratio of FLOPs is {with_extra}."
    )


def recipe_table(results: Results) -> str:
    rows = []
    named = recipe_rows(results)
    for name, run in named.items():
        found = [results.get(replace(run, seed=seed)) for seed in SEEDS]
        done: list[dict[str, Any]] = [one for one in found if one is not None]
        if not done:
            rows.append([name, "", "", "", "0", NOT_RUN, "", ""])
            continue
        least, most = min(one["expert_load"][0] for one in done), max(one["expert_load"][1] for one in done)
        base = next(iter(named.values()))
        rows.append(
            [name, f"{done[0]['parameters'] / 1e3:,.0f}k", f"{done[0]['active'] / 1e3:,.0f}k",
             f"{done[0]['flops'] / 1e12:.2f}", str(len(done)), shown(list(over_seeds(results, run).values())),
             "" if run == base else shown(differences(results, run, base), sign="+"),
             "" if run.n_experts == 1 else f"{least:.2f} to {most:.2f}"]
        )  # fmt: skip
    if not rows:
        return f"Dense models and the parts of the recipe: {NOT_RUN} yet."
    head = ["model", "parameters", "active", "TFLOPs", "seeds", "final loss", "against the recipe", "expert load"]
    return table(head, rows)


def above_best(results: Results, runs: list[Run], rate: float) -> float | None:
    """Nats by which this rate ends above the sweep's best; None while the sweep is not done."""
    best = results.best(runs) if runs else None
    if best is None:
        return None
    mine, least = results.final(replace(best, lr=rate)), results.final(best)
    assert mine is not None and least is not None
    return mine - least


def verdict(value: float | None, limit: float) -> str:
    return "open" if value is None else "yes" if value <= limit else "no"


def token_goal(results: Results, compared: Comparison | None) -> list[str]:
    """What Muon needs of AdamW's tokens, and whether the entire interval lies within the goal."""
    found = token_shares(results, compared)
    if compared is None or len(found) < len(SEEDS):
        return [NOT_RUN, "open"]
    clear = 0.0 not in found and math.inf not in found
    mean, half = interval(found) if clear else (max(found), 0.0)
    met = mean + (half or 0.0) <= GOAL_TOKENS
    return [shown_shares(found, compared.share(compared.muons[-1])), "yes (the entire interval)" if met else "no"]


def goal_table(results: Results) -> str:
    rows = [
        [f"Muon reaches tuned AdamW's final loss with at most {GOAL_TOKENS} of its tokens",
         *token_goal(results, comparison(results))],
        [f"the same on {LONG:g} times the tokens, both tuned there", *token_goal(results, long_comparison(results))],
    ]  # fmt: skip
    for name, gains in dense_gains(results).items():
        worst = None
        if len(gains) >= len(SEEDS):
            mean, half = interval(gains)
            worst = (half or 0) - mean
        rows.append(
            [f"the MoE beats the dense model of equal active parameters{name} (nats of difference)",
             shown(gains, sign="+"), verdict(worst, 0.0)]
        )  # fmt: skip
    sweeps = {"": sweep(results, Run(optimizer="muon", lr=0)), ", twice the width": wide_sweep(results)}
    for name, runs in sweeps.items():
        gap = above_best(results, runs, GOAL_RATE)
        text = NOT_RUN if gap is None else f"{gap:+.3f}"
        rows.append(
            [f"a rate of {GOAL_RATE:g} ends within {GOAL_NATS} nats of the best{name}", text, verdict(gap, GOAL_NATS)]
        )
    return table(["goal", "measured", "met"], rows)


def missing(results: Results) -> str:
    lines = []
    for stage, runs in matrix(results):
        left = None if runs is None else [run for run in runs if results.get(run) is None]
        if left is None:
            lines.append(f"- {stage}: all of it")
        elif left:
            lines.append(f"- {stage}: {len(left)} of {len(runs or [])} runs")
    return "\n".join(["Not run yet (`--plan` names each run):", "", *lines]) if lines else "The matrix is complete."


def write_report(results: Results, docs: Path) -> None:
    from learning_picture import draw
    from learning_recipe_picture import draw_recipe
    from learning_rule_picture import draw_rule

    parts = {
        "rule": rule_part(results),
        "stages": recipe_part(results),
        "goals": goal_table(results),
        "rates": rate_table(results),
        "adamw": adamw_table(results),
        "budgets": budget_table(results),
        "long": long_table(results),
        "recipe": recipe_table(results),
        "missing": missing(results),
    }
    for path in (docs / name for name in PAGES):
        page = path.read_text(encoding="utf-8")
        for name in [name for name in parts if f"<!-- {name} -->" in page]:
            before, begin, rest = page.partition(f"<!-- {name} -->\n")
            _, end, after = rest.partition(f"<!-- /{name} -->")
            assert begin and end, f"{path} has no place for {name}"
            page = f"{before}{begin}{parts.pop(name)}\n{end}{after}"
        path.write_text(page, encoding="utf-8")
    assert not parts, f"{', '.join(PAGES)} have no place for {', '.join(parts)}"
    draw(results, docs / "learning.png")
    draw_rule(results, docs / "learning-rule.png")
    draw_recipe(results, docs / "learning-recipe.png")
