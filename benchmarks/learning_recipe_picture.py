"""docs/learning-recipe.png: stage A's differences, seed by seed; stage B's token ratios with their intervals."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from learning_matrix import Results
from learning_picture import GREY, MUON, STYLE
from learning_recipe import HELPS, SEEDS, base_of, screen
from learning_recipe_report import Decision, arms_of, decide, losses_of
from matplotlib.axes import Axes

GOOD = "#5b8c3a"


def draw_screen(axes: Axes, differences: dict[str, list[float]]) -> None:
    axes.axvline(0, color=GREY, linewidth=1)
    axes.axvline(HELPS, color=GOOD, linewidth=1, linestyle=(0, (4, 3)))
    for place, values in enumerate(differences.values()):
        mean = statistics.mean(values)
        color = GOOD if mean <= HELPS else MUON
        axes.plot(values, [place] * len(values), "o", color=color, markersize=4, alpha=0.5)
        axes.plot(mean, place, "|", color=color, markersize=18, markeredgewidth=3)
        write(axes, f"{mean:+.4f}", mean, place)
    axes.set(title="A, screen: dots are seeds, dashed is what goes on", xlabel="nats above (+) or below (−) base")
    name_rows(axes, [*differences])


def draw_decision(axes: Axes, found: Decision) -> None:
    names = [name for name in found.arms if name != "base"]
    axes.axvline(1, color=GREY, linewidth=1)
    for place, name in enumerate(names):
        least, mean, most = found.ratios(name)
        color = GOOD if most < 1 else MUON
        axes.plot([least, most], [place, place], color=color, linewidth=2, solid_capstyle="round")
        axes.plot(mean, place, "o", color=color, markersize=7)
        write(axes, f"{mean:.2f}", mean, place)
    axes.set(title="B, decide: 95% for all arms together", xlabel="tokens needed over base's, for the same loss")
    name_rows(axes, names)


def write(axes: Axes, text: str, x: float, place: int) -> None:
    axes.annotate(text, (x, place), xytext=(0, 10), textcoords="offset points", ha="center", fontsize=9)


def name_rows(axes: Axes, names: list[str]) -> None:
    """The first on top."""
    axes.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.7)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)


def draw_recipe(results: Results, path: Path) -> None:
    """Nothing while no arm of A has all its seeds."""
    arms = arms_of(results, screen, SEEDS["A"])
    differences = {
        name: [a - b for a, b in zip(losses_of(results, runs), losses_of(results, arms[base_of(name)]), strict=True)]
        for name, runs in arms.items()
        if base_of(name) in arms and name != base_of(name)
    }
    if not differences:
        return
    found = decide(results)
    with plt.rc_context(STYLE):
        panels = 1 if found is None else 2
        figure, row = plt.subplots(1, panels, figsize=(6.2 * panels, 3.8), layout="constrained", squeeze=False)
        draw_screen(row[0][0], differences)
        if found is not None:
            draw_decision(row[0][1], found)
        figure.savefig(path, dpi=120)
        plt.close(figure)
