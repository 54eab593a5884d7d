"""What it costs to look at a long run: `moe watch --once` and `moe report` on a log that is made.

    python benchmarks/logs.py --rows 50000 [--tree OTHER_CHECKOUT ...] [--pairs 3]

62 numbers a row, as six layers log them, every hundredth row with the results of an evaluation; `--experts 64` adds the
loads of so many experts in each layer, of which a Mixture of Experts logs a list a layer. Each command is a
process of its own: wall seconds, CPU seconds and the most memory it had, the start included (`moe --help` beside it).
Of several checkouts, each is measured in turn, several times, and the medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (["--help"], ["watch", "RUN", "--once"], ["report", "RUN"])
PLAIN = ("train/loss", "train/perplexity", "optim/lr/adamw", "optim/lr/norms", "optim/grad_norm", "optim/skipped_steps")
MORE = ("tokens", "throughput/tokens_per_sec", "throughput/data_wait", "memory/process_gb", "experts/load_max")
LAYERED = (
    "experts/load_max",
    "experts/load_min",
    "experts/max_vio",
    "experts/dead",
    "router/entropy",
    "router/logit_max",
)
OTHERS, LAYERS = 15, 6


def make_run(folder: Path, rows: int, experts: int = 0) -> int:
    """A run that is done; returns the bytes of its log."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"id": "0123abcd", "run_name": "long", "state": "done"}))
    sizes = {"max_seq_len": 128, "global_train_batch_size": 8, "max_duration": f"{rows}ba"}
    (folder / "config.yaml").write_text(json.dumps(sizes))
    keys = [*PLAIN, *MORE, *(f"other/metric_{n:02}" for n in range(OTHERS))]
    keys += [f"{name}/layer_{layer:02}" for name in LAYERED for layer in range(LAYERS)]
    draw = random.Random(17).random
    with open(folder / "metrics.jsonl", "w") as log:
        for step in range(1, rows + 1):
            row: dict[str, float | list[float]] = {"step": step, **{key: 1 + draw() for key in keys}}
            for layer in range(LAYERS if experts else 0):
                row[f"experts/load/layer_{layer:02}"] = [round(2 * draw(), 3) for _ in range(experts)]
            if step % 100 == 0:
                row["metrics/eval/loss"] = 1 + draw()
            log.write(json.dumps(row) + "\n")
    return (folder / "metrics.jsonl").stat().st_size


def cost(tree: Path, arguments: list[str]) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, most MB) of `moe ARGUMENTS` by the code of `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "120"}
    command = [sys.executable, "-m", "moe.cli.main", *arguments]
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment, cwd=tree, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"moe {' '.join(arguments)} by {tree} ended with {process.returncode}")
    return time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--experts", type=int, default=0, help="in each layer's list of loads")
    parser.add_argument("--pairs", type=int, default=3, help="how often each checkout is measured")
    parser.add_argument("--tree", type=Path, action="append", default=[], help="another checkout, measured beside")
    args = parser.parse_args()
    trees = [tree.absolute() for tree in (*args.tree, ROOT)]
    with tempfile.TemporaryDirectory(prefix="moe-logs-") as made:
        size = make_run(Path(made) / "run", args.rows, args.experts)
        print(f"{args.rows:,} rows, {size / 1e6:,.0f} MB; load average {os.getloadavg()[0]:.1f}", flush=True)
        for command in COMMANDS:
            arguments = [str(Path(made) / "run") if word == "RUN" else word for word in command]
            found: dict[Path, list[tuple[float, float, float]]] = {tree: [] for tree in trees}
            for _ in range(args.pairs):
                for tree in trees:
                    found[tree].append(cost(tree, arguments))
            for number, tree in enumerate(trees):
                wall, cpu, memory = (statistics.median(column) for column in zip(*found[tree], strict=True))
                where = "this checkout" if tree == ROOT else f"other {number + 1}"
                print(
                    f"moe {' '.join(command)}, {where}: {wall:.2f} s, {cpu:.2f} s of CPU, {memory:.0f} MB", flush=True
                )
    print(f"load average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
