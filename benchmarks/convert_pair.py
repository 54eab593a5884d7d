"""A conversion by this checkout and by another one, in turn: is a version slower than the one before?

    git worktree add /tmp/before REVISION
    python benchmarks/convert_pair.py /tmp/before --dataset FOLDER --tokenizer FOLDER [--workers 1] [--rounds 5]

Prints the ratio of CPU and of wall seconds, this one to the other, of the whole command; imports and plan are in it, so
small data says what a start costs. The first conversion of each is not counted.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def once(tree: Path, flags: list[str]) -> tuple[float, float]:
    """CPU and wall seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(tree / "convert/fineweb_to_mds.py"), *flags, "--out", f"{folder}/out"]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(command, check=True, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True)
        wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=lambda text: Path(text).resolve())
    parser.add_argument("--dataset", required=True, type=lambda text: str(Path(text).resolve()))
    parser.add_argument("--tokenizer", required=True, type=lambda text: str(Path(text).resolve()))
    parser.add_argument("--workers", default="1")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    flags = ["--dataset", args.dataset, "--tokenizer", args.tokenizer, "--workers", args.workers]
    ratios: list[tuple[float, float]] = []
    for turn in range(args.rounds + 1):
        (their_cpu, their_wall), (cpu, wall) = once(args.other, flags), once(ROOT, flags)
        if turn:
            ratios.append((cpu / their_cpu, wall / their_wall))
            print(
                f"{turn}: CPU {cpu:.2f} / {their_cpu:.2f} s = {ratios[-1][0]:.2f}, wall {ratios[-1][1]:.2f}", flush=True
            )
    cpu_ratio, wall_ratio = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"median of {args.rounds}: CPU {cpu_ratio:.2f}, wall {wall_ratio:.2f}")


if __name__ == "__main__":
    main()
