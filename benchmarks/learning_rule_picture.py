"""docs/learning-rule.png: how far above its best each cell ends, by the rate over the rule's."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from learning_matrix import Results
from learning_picture import GREY, STYLE
from learning_rule import CELLS
from learning_rule_report import FAR, NEAR, outcomes

COLORS = ("#1f6f8b", "#c4572b", "#5b8c3a", "#8a4f9e", "#c99a2e", "#3f5fa8", "#a8435f")
MOST = 0.4  # nats; beyond it only that a rate is bad is of interest


def draw_rule(results: Results, path: Path) -> None:
    """Nothing while no cell is complete."""
    found = outcomes(results)
    if not found:
        return
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.5, 4.7), layout="constrained")
        axes.axhspan(0, NEAR, color="#e3efe0", zorder=0)
        axes.axhline(FAR, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.axvline(1, color=GREY, linewidth=1)
        for one in found:
            color = COLORS[list(CELLS).index(one.name)]
            rule = one.rates[1.0]
            points = sorted((rate / rule, one.regret(factor)) for factor, rate in one.rates.items())
            axes.plot(*zip(*points, strict=True), color=color, linewidth=2, marker="o", markersize=5, label=one.name)
            share = one.rates["moonlight"] / rule
            axes.plot(share, one.regret("moonlight"), "D", color="white", markeredgecolor=color, markersize=8)
        axes.set_xscale("log", base=2)
        axes.set_xticks([0.125, 0.25, 0.5, 1, 2, 4], ["1/8", "1/4", "1/2", "1", "2", "4"])
        axes.set_ylim(-0.01, MOST)
        axes.set(
            title="Nats above the cell's best, by rate",
            xlabel="rate over the rule's (open diamond: Moonlight's)",
            ylabel="nats a token",
        )
        axes.legend(frameon=False, fontsize=9)
        figure.savefig(path, dpi=120)
        plt.close(figure)
