"""Samples a second from shards on this machine: stock StreamingDataset, this reader, and a plain memmap, in turn.

    make bench-reader        or: python benchmarks/reader.py --repeats 5 --write

Each reads the same sequences in the same shuffled order (Streaming's py1e), one full epoch in one process without a
DataLoader, and this reader also in its own order; the first check is that they give the same tokens. The memmap loader
is nanoGPT's way: one flat file, a slice a sequence, no shards, no position. A second table has the DataLoader as the
trainer uses it, batches collated, by number of workers. `--write` puts both tables into docs/performance.md.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from streaming import StreamingDataset

from moe.data.read.dataset import TokenDataset
from moe.data.read.loader import SHUFFLE_BLOCK, build_train_loader
from moe.data.read.mixture import StreamSpec
from moe.data.write.shards import ShardFormat

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
SETTINGS = {
    "split": "train", "batch_size": 8, "shuffle": True, "shuffle_algo": "py1e", "shuffle_seed": 17,
    "shuffle_block_size": SHUFFLE_BLOCK, "num_canonical_nodes": 1,
}  # fmt: skip
Samples = Iterable[np.ndarray]


def write_data(folder: Path, *, samples: int, seq_len: int) -> None:
    """Random tokens as MDS shards and as one flat file; the first two tokens of a sample are its number."""
    layout = ShardFormat(seq_len=seq_len, dtype="uint16")
    (folder / "train").mkdir(parents=True)
    random = np.random.default_rng(0)
    infos: list[dict[str, Any]] = []
    with open(folder / "tokens.bin", "wb") as flat:
        for start in range(0, samples, layout.samples_per_shard):
            number = np.arange(start, min(samples, start + layout.samples_per_shard))
            rows = random.integers(0, 50257, (len(number), seq_len), np.uint16)
            rows[:, 0], rows[:, 1] = number % 50000, number // 50000
            flat.write(rows.tobytes())
            infos.append(layout.write(folder / "train" / f"shard.{len(infos):05}.mds", rows))
    layout.write_index(folder / "train", infos)


def number_of(sample: np.ndarray) -> int:
    return int(sample[0]) + 50000 * int(sample[1])


def stock(folder: Path) -> Iterator[np.ndarray]:
    for sample in StreamingDataset(local=str(folder), **SETTINGS):  # type: ignore[arg-type]
        yield sample["tokens"]


def ours(folder: Path, seq_len: int, *, stock_order: bool = False) -> Samples:
    return TokenDataset(local=str(folder), seq_len=seq_len, vocab_size=50257, stock_order=stock_order, **SETTINGS)


def memmap(folder: Path, seq_len: int, order: np.ndarray) -> Iterator[np.ndarray]:
    tokens = np.memmap(folder / "tokens.bin", np.uint16, "r")
    for i in order.tolist():
        yield np.array(tokens[i * seq_len : (i + 1) * seq_len])


def cpu_seconds() -> float:
    """Of this process and of its workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def timed(open_samples: Callable[[], Samples]) -> tuple[int, float, float]:
    """(items, CPU seconds, wall seconds) of one pass; opening a dataset is not counted, its shuffle is."""
    gc.collect()
    samples = open_samples()
    count, cpu, wall = 0, cpu_seconds(), time.perf_counter()
    for _ in samples:
        count += 1
    del samples
    gc.collect()
    return count, cpu_seconds() - cpu, time.perf_counter() - wall


def compare(folder: Path, seq_len: int, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """(sequences per CPU second, sequences per wall second) of each reader, repetition by repetition."""
    order = np.array([number_of(sample) for sample in ours(folder, seq_len, stock_order=True)])
    theirs = ours(folder, seq_len, stock_order=True)
    for a, b, c in zip(stock(folder), theirs, memmap(folder, seq_len, order), strict=True):
        assert np.array_equal(a, b) and np.array_equal(b, c), "the readers differ"
    readers: dict[str, Callable[[], Samples]] = {
        "StreamingDataset": lambda: StreamingDataset(local=str(folder), **SETTINGS),  # type: ignore[arg-type]
        "this reader, py1e": lambda: ours(folder, seq_len, stock_order=True),
        "this reader": lambda: ours(folder, seq_len),
        "plain memmap": lambda: memmap(folder, seq_len, order),
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for _ in range(repeats):
        for name, reader in readers.items():
            count, cpu, wall = timed(reader)
            rates[name].append((count / cpu, count / wall))
            print(
                f"S={seq_len}  {name:<17} {count / cpu:>9,.0f} sequences/CPU-s {count / wall:>9,.0f} sequences/s",
                flush=True,
            )
    return rates


def through_loader(folder: Path, seq_len: int, workers: int, batch: int) -> tuple[float, float]:
    """(batches per CPU second, batches per wall second) as the trainer gets them, starting the workers included."""
    count, cpu, wall = timed(
        lambda: build_train_loader(
            {"": StreamSpec(str(folder), None, "train")},
            seq_len=seq_len, eos_id=0, vocab_size=50257, document_mask=True, device_batch_size=batch, seed=17,
            num_workers=workers,
        )
    )  # fmt: skip
    return count / cpu, count / wall


def median(rates: list[tuple[float, float]], which: int) -> float:
    return statistics.median(rate[which] for rate in rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1 << 26, help="size of the data")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="sequences a batch, for the DataLoader")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    args = parser.parse_args()
    lines = [
        "| S | reader | sequences / CPU-s | sequences / s | CPU ratio to stock, median (range) | wall ratio |",
        "|---|---|---|---|---|---|",
    ]
    loader = ["| S | workers | batches / s | tokens / s | batches / CPU-s |", "|---|---|---|---|---|"]
    for seq_len in (512, 2048):
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root, "data")
            write_data(folder, samples=args.tokens // seq_len, seq_len=seq_len)
            rates = compare(folder, seq_len, args.repeats)
            base = rates["StreamingDataset"]
            for name, found in rates.items():
                cpu = [a[0] / b[0] for a, b in zip(found, base, strict=True)]
                wall = statistics.median(a[1] / b[1] for a, b in zip(found, base, strict=True))
                lines.append(
                    f"| {seq_len} | {name} | {median(found, 0):,.0f} | {median(found, 1):,.0f} | "
                    f"{statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f}) | {wall:.2f} |"
                )
            for workers in (0, 1, 2):
                passes = [through_loader(folder, seq_len, workers, args.batch) for _ in range(args.repeats)]
                speed = median(passes, 1)
                loader.append(
                    f"| {seq_len} | {workers} | {speed:,.0f} | {speed * args.batch * seq_len / 1e6:,.0f}M | "
                    f"{median(passes, 0):,.0f} |"
                )
                print(loader[-1], flush=True)
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    text = "\n".join(
        [
            f"`python benchmarks/reader.py --repeats {args.repeats} --write` on {machine}; {args.tokens / 1e6:.0f}M "
            "random tokens in the page cache, readers in turn.",
            "", *lines, "", f"Through the DataLoader, batches of {args.batch}:", "", *loader,
        ]
    )  # fmt: skip
    print("\n" + text)
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        changed = re.subn(
            r"(<!-- reader -->\n).*?(<!-- /reader -->)", lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.S
        )
        assert changed[1] == 1, f"{PAGE} has no place for the table"
        PAGE.write_text(changed[0], encoding="utf-8")


if __name__ == "__main__":
    main()
