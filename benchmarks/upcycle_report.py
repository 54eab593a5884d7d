"""docs/upcycling.md's tables and docs/upcycling.png, from the result files of benchmarks/upcycle.py alone.

A row that was not run says so; a row of one seed has no interval. Differences are taken seed by seed.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from learning_matrix import SEEDS, Results
from learning_picture import ADAMW, GREY, MUON, STYLE, WIDE_MUON
from learning_report import NOT_RUN, shown, table
from learning_run import Run
from learning_stats import differences, over_seeds
from upcycle_arms import BASE, RATES, arms, chosen, pending, swept

DENSE, UPCYCLED, SCRATCH, BOTH = arms()
COLORS = {DENSE: GREY, UPCYCLED: MUON, SCRATCH: WIDE_MUON, BOTH: ADAMW}


def rate_table(results: Results) -> str:
    """Final losses of the first seed by rate, the best of a complete row in bold."""
    rows = []
    for name in (DENSE, UPCYCLED):
        runs, best = swept(results, arms()[name])
        losses = [(run, results.final(run)) for run in runs]
        cells = ["" if loss is None else f"**{loss:.3f}**" if run == best else f"{loss:.3f}" for run, loss in losses]
        rows.append([name, *cells])
    return table(["final loss by rate, seed 0", *(f"{rate:g}" for rate in RATES)], rows)


def _all(results: Results, run: Run) -> list[dict[str, Any]]:
    found = [results.get(replace(run, seed=seed)) for seed in SEEDS]
    return [one for one in found if one is not None]


def arm_table(results: Results) -> str:
    found, rows = chosen(results), []
    dense = found[DENSE]
    for name, run in found.items():
        made = [] if run is None else _all(results, run)
        if run is None or not made:
            rows.append([name, NOT_RUN, *[""] * 7])
            continue
        against = differences(results, run, dense) if dense and run != dense else []
        loads = [one["expert_load"] for one in made]
        rows.append(
            [
                name,
                f"{run.lr:g}",
                f"{made[0]['parameters'] / 1e3:,.0f}k",
                f"{made[0]['flops'] / 1e12:.2f}",
                str(len(made)),
                shown([one["before"] for one in made]),
                shown(list(over_seeds(results, run).values())),
                shown(against, sign="+") if against else "",
                "" if run.n_experts == 1 else f"{min(x for x, _ in loads):.2f} to {max(x for _, x in loads):.2f}",
            ]
        )
    head = ["model", "rate", "parameters", "TFLOPs", "seeds", "loss before", "final loss", "against the first row"]
    return table([*head, "expert load"], rows)


def findings(results: Results) -> str:
    """Upcycled less each of the others, seed by seed, in nats."""
    found, rows = chosen(results), []
    upcycled = found[UPCYCLED]
    for name, expected in ((DENSE, "-0.05 to 0"), (SCRATCH, "-0.2 or less"), (BOTH, "0 or more")):
        other = found[name]
        nats = differences(results, upcycled, other) if upcycled and other else []
        by_seed = ", ".join(f"{value:+.3f}" for value in nats)
        rows.append([name, expected, shown(nats, sign="+"), by_seed])
    return table(["upcycled against", "expected", "measured", "by seed"], rows)


def missing(results: Results) -> str:
    left = len(pending(results))
    return f"\n\nNot complete: {left} runs can be made next." if left else ""


def draw(results: Results, path: Path) -> None:
    """Validation loss by the FLOPs of the model spent on the way to it, the dense model's first part before."""
    first = _all(results, BASE)
    if not first:
        return
    spent = first[0]["flops"] / 1e12
    lines: list[tuple[str, str, float, list[dict[str, Any]]]] = [("dense, first part", "#9a9a9a", 0.0, first)]
    for name, run in chosen(results).items():
        made = [] if run is None else _all(results, run)
        if run is not None and made:
            lines.append((f"{name} ({len(made)})", COLORS[name], 0.0 if run.share > 1 else spent, made))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.5, 4.7), layout="constrained")
        for name, color, begin, made in lines:
            per_token = made[0]["flops"] / made[0]["tokens"] / 1e12
            points = [begin + tokens * per_token for tokens, _ in made[0]["curve"]]
            losses = [
                statistics.mean(column) for column in zip(*([p[1] for p in one["curve"]] for one in made), strict=True)
            ]
            if begin and made[0]["start"] != "random":
                points, losses = [begin, *points], [statistics.mean(one["before"] for one in made), *losses]
            axes.plot(points, losses, color=color, linewidth=2, marker="o", markersize=4, label=name)
        axes.set_ylim(top=5.2)
        axes.set_xlim(left=0)
        axes.set(
            title="Validation loss by compute (seeds)",
            xlabel="TFLOPs of the model, forward and backward",
            ylabel="nats a token",
        )
        axes.legend(frameon=False, fontsize=9)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def write_report(results: Results, docs: Path) -> None:
    commits = sorted({one["commit"] for run in results.finished() if (one := results.get(run)) is not None})
    text = "\n\n".join([findings(results), arm_table(results), rate_table(results)])
    text += f"\n\nMade by commit {', '.join(commits) or 'none'}.{missing(results)}"
    path = docs / "upcycling.md"
    page, count = re.subn(
        r"(<!-- upcycle -->\n).*?(<!-- /upcycle -->)",
        lambda m: f"{m[1]}{text}\n{m[2]}",
        path.read_text(encoding="utf-8"),
        flags=re.S,
    )
    assert count == 1, f"{path} has no place for the results"
    path.write_text(page, encoding="utf-8")
    draw(results, docs / "upcycling.png")
