"""docs/learning.png: the rates, the way to AdamW's final loss, and what each part of the recipe is worth."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from learning_matrix import SEEDS, Results, best_muon, comparison, sweep, tuned_adamw, wide_sweep
from learning_run import Run
from learning_stats import differences, interval, over_seeds, recipe_rows
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

ADAMW, MUON, WIDE_MUON, GREY = "#c4572b", "#1f6f8b", "#7fb3c4", "#6b6b6b"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9a9a9a",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#333333",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "axes.axisbelow": True,
}


def draw_rates(axes: Axes, results: Results) -> None:
    sweeps = (
        ("AdamW, warmup 0.1", ADAMW, sweep(results, Run(optimizer="adamw", lr=0))),
        ("Muon", MUON, sweep(results, Run(optimizer="muon", lr=0))),
        ("Muon, twice the width", WIDE_MUON, wide_sweep(results)),
    )
    rates: set[float] = set()
    for name, color, runs in sweeps:
        points = [(run.lr, loss) for run in runs if (loss := results.final(run)) is not None]
        if not points:
            continue
        axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=5, linewidth=2, label=name)
        rates |= {rate for rate, _ in points}
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(rates), [f"{rate:g}" for rate in sorted(rates)])
    axes.set(title="Final loss by learning rate", xlabel="peak learning rate", ylabel="validation loss, nats a token")
    axes.legend(frameon=False, loc="center right")


def draw_curves(axes: Axes, results: Results) -> None:
    adamw, muon = tuned_adamw(results)[1], best_muon(results)
    name_of_adamw = "AdamW, tuned" if adamw else "AdamW, the best so far"
    swept = [run for run in results.finished() if run.optimizer == "adamw" and run.seed == 0 and run.share == 1]
    adamw = adamw or results.best(swept)
    axes.set(title="The way there", xlabel="million tokens", ylabel="validation loss, nats a token")
    if adamw is None or muon is None:
        return
    lines: list[tuple[str | None, str, float, Run, str]] = [
        (name_of_adamw, ADAMW, 2.2, adamw, ""),
        ("Muon", MUON, 2.2, muon, ""),
    ]
    compared = comparison(results)
    lines += [
        ("Muon on fewer tokens" if i == 0 else None, MUON, 1.2, run, f"{run.share:g}")
        for i, run in enumerate(compared.muons[1:] if compared else [])
    ]
    top = 0.0
    for name, color, width, run, end in lines:
        curves = [found["curve"] for seed in SEEDS if (found := results.get(replace(run, seed=seed))) is not None]
        if not curves:
            continue
        tokens = [point[0] / 1e6 for point in curves[0]]
        losses = [statistics.mean(points) for points in zip(*([p[1] for p in c] for c in curves), strict=True)]
        axes.plot(tokens, losses, color=color, linewidth=width, marker="o", markersize=2 + width, label=name)
        axes.annotate(
            end,
            (tokens[-1], losses[-1]),
            xytext=(0, -13),
            textcoords="offset points",
            ha="center",
            color=color,
            fontsize=9,
        )
        top = max(top, losses[1])
    final = statistics.mean(over_seeds(results, adamw).values())
    axes.axhline(final, color=ADAMW, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "AdamW's final loss", (1, final), xycoords=axes.get_yaxis_transform(), xytext=(0, -12),
        textcoords="offset points", ha="right", color=ADAMW, fontsize=9,
    )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_ylim(top=top)
    axes.margins(y=0.1)
    axes.legend(frameon=False)


def recipe_differences(results: Results) -> dict[str, list[float]]:
    """Nats above the recipe of every model that was run."""
    named = recipe_rows(results)
    base = next(iter(named.values()), None)
    found = {name: differences(results, run, base) for name, run in named.items() if base and run != base}
    return {name: values for name, values in found.items() if values}


def draw_recipe(axes: Axes, rows: dict[str, list[float]]) -> None:
    axes.set(title="Against the recipe", xlabel="nats above (+) or below (−) it")
    axes.axvline(0, color=GREY, linewidth=1)
    names = list(reversed(rows))
    for place, name in enumerate(names):
        mean, half = interval(rows[name])
        color = GREY if name.startswith("dense") else MUON
        axes.plot(mean, place, "o", color=color, markersize=7)
        if half is not None:
            axes.plot([mean - half, mean + half], [place, place], color=color, linewidth=2, solid_capstyle="round")
        axes.annotate(f"{mean:+.3f}", (mean, place), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
    axes.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
    axes.set_ylim(-0.6, len(names) - 0.3)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.2)


def draw(results: Results, path: Path) -> None:
    rows = recipe_differences(results)
    widths = (1, 1.2, 0.95) if len(rows) > 2 else (1, 1.2)
    with plt.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(wspace=0.06)
        figure, axes = plt.subplots(1, len(widths), figsize=(13.5, 4.7), width_ratios=widths, layout=layout)
        draw_rates(axes[0], results)
        draw_curves(axes[1], results)
        if len(rows) > 2:
            draw_recipe(axes[2], rows)
        figure.savefig(path, dpi=120)
        plt.close(figure)
