"""How well an epoch is shuffled: this project's order beside Streaming's, and what a model learns with each.

    python benchmarks/order.py --write                  distances and batches; computed, no data needed
    python benchmarks/order.py --losses data/learning   three seeds with each order (the data of benchmarks/learning.py)

The first table is of sequences of 2,048 tokens in shards of 64 MB. Neighbours of a shard are often of one document: how
far apart do they come in an epoch, and how many of a batch are of one shard? `any order` is one random permutation.
What was expected of the losses before they were measured: no difference between the orders beyond what the seed makes.
There shards are small, so that the data has many: 64 sequences, and py1e's block is 16 shards, as its least block is of
shards of 64 MB.
"""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path

import numpy as np
from streaming.base.shuffle import get_shuffle

from moe.data.read.order import Order, window_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
SHARDS, ROWS, BATCH, BLOCK = 240, 16_367, 256, 1 << 18


def ours(sizes: np.ndarray, *, seed: int, stripes: int = 1, batch: int = BATCH) -> np.ndarray:
    """An epoch: sequence ids in the order of their batches."""
    order = Order(
        [sizes], [int(sizes.sum()) // batch * batch], seed=seed, stripes=stripes, window=window_of(stripes, 1)
    )
    rows, found = batch // stripes, []
    for first in range(0, order.length, 1 << 16):
        place = np.arange(first, min(order.length, first + (1 << 16)))
        number, row = np.divmod(place, batch)
        found.append(order.samples(0, row // rows, number * rows + row % rows))
    return np.concatenate(found)


def theirs(sizes: np.ndarray, name: str, *, seed: int, stripes: int = 1, block: int = BLOCK) -> np.ndarray:
    """Streaming's shuffle; its partition takes one sequence of each canonical node in turn."""
    found = get_shuffle(name, sizes, stripes, seed, 0, block)
    return found[: len(found) // stripes * stripes].reshape(stripes, -1).T.reshape(-1)


def quality(ids: np.ndarray) -> list[str]:
    """Median and first percentile of the distance of neighbours; shards in a batch, and its most of one shard."""
    place = np.full(SHARDS * ROWS, -1)
    place[ids] = np.arange(len(ids))
    one, next_ = place[:-1], place[1:]
    kept = (one >= 0) & (next_ >= 0) & (np.arange(1, len(place)) % ROWS != 0)
    distance = np.abs(next_ - one)[kept]
    batches = (ids[: len(ids) // BATCH * BATCH] // ROWS).reshape(-1, BATCH)[::7]
    counts = [np.unique(batch, return_counts=True)[1] for batch in batches]
    most = [int(of.max()) for of in counts]
    return [
        f"{np.median(distance):,.0f}",
        f"{np.percentile(distance, 1):,.0f}",
        f"{(distance < BATCH).mean():.3%}",
        f"{np.mean([len(of) for of in counts]):.0f}",
        f"{np.mean(most):.0f}",
        f"{max(most)}",
    ]


def shuffles() -> list[str]:
    sizes = np.full(SHARDS, ROWS)
    random = np.random.default_rng(0)
    orders = {
        "any order": random.permutation(SHARDS * ROWS),
        "this order, W = 32": ours(sizes, seed=1),
        "this order, C = 8, W = 4": ours(sizes, seed=1, stripes=8),
        "py1e, block 2^18 (before)": theirs(sizes, "py1e", seed=1),
        "py1br, block 2^18": theirs(sizes, "py1br", seed=1),
        "py1s, C = 64": theirs(sizes, "py1s", seed=1, stripes=64),
    }
    lines = [
        "| order | neighbours apart, median | 1st percentile | below a batch | shards in a batch | most of one: mean "
        "| largest |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, ids in orders.items():
        lines.append(f"| {name} | {' | '.join(quality(ids))} |")
        print(lines[-1], flush=True)
    return lines


def losses(folder: Path, seeds: int) -> list[str]:
    from learning_run import BATCH as rows
    from learning_run import Run, open_data, train

    data = open_data(folder / "mds")
    shards = len(data.train) // 64
    sizes = np.full(shards, 64)
    lines = ["| seed | this order | py1e | difference |", "|---|---|---|---|"]
    found = []
    for seed in range(seeds):
        orders = ours(sizes, seed=seed, batch=rows), theirs(sizes, "py1e", seed=seed, block=16 * 64)
        here, before = (train(Run(optimizer="muon", lr=0.008, seed=seed), data, order)["final"] for order in orders)
        found.append(here - before)
        lines.append(f"| {seed} | {here:.4f} | {before:.4f} | {here - before:+.4f} |")
        print(lines[-1], flush=True)
    error = statistics.stdev(found) / len(found) ** 0.5
    lines.append(f"| mean | | | {statistics.mean(found):+.4f} (standard error {error:.4f}) |")
    print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", type=Path, help="the data of benchmarks/learning.py: train with each order")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    args = parser.parse_args()
    name = "losses" if args.losses else "shuffle"
    lines = losses(args.losses, args.seeds) if args.losses else shuffles()
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        text = "\n".join(lines)
        places = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        found = re.subn(places, lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.S)
        assert found[1] == 1, f"{PAGE} has no place for the table"
        PAGE.write_text(found[0], encoding="utf-8")


if __name__ == "__main__":
    main()
