"""LLM Foundry's own convert_dataset_hf and this converter, on the same text with the same tokenizer, in turn.

    make bench-convert        or: python benchmarks/convert.py --rounds 3 --write

The first run makes an environment with llm-foundry 0.22.0 in .bench/ (it needs the network and about a minute); its
imports take most of a minute too. Rates are tokens per CPU-second of all processes, after the imports; ratios are taken
within a round and the median of the rounds is shown. `--write` puts the result into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / ".bench"
PAGE = ROOT / "docs" / "performance.md"
MARK, END = "<!-- conversion -->", "<!-- /conversion -->"
FOUNDRY, MUCH = "LLM Foundry", ", much text"
ENCODERS = ("gigatoken", "fastokens", "transformers")
FAST = ENCODERS[:2]
MACHINE = "machine"
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
RATIOS = (("gigatoken", 35.0), ("fastokens", 18.0), ("transformers", 1.4))
PARTS = ("reading", "encoding", "checking rows", "hashing ids", "packing", "writing", "the rest")
Results = dict[str, dict[str, list]]  # converter -> `1`, `2` or `bare` -> one a round


def foundry_python() -> Path:
    """The interpreter of LLM Foundry's environment, made where it is not there."""
    python = BENCH / "foundry" / "bin" / "python"
    ready = BENCH / "foundry" / "ready"
    if not ready.exists():
        print("making an environment for LLM Foundry in .bench/foundry ...", flush=True)
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if uv is None:
            sys.exit("error: uv is needed: pip install uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, python.parents[1]], check=True)
        packages = ["llm-foundry==0.22.0", "setuptools<81"]
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *packages], check=True)
        ready.touch()
    return python


def make_text(folder: Path, source: Path, *, copies: int, files: int) -> Path:
    """A folder with `files` parquet files that hold the rows of `source` `copies` times in total."""
    found = sorted(source.rglob("*.parquet"))
    if not found:
        sys.exit(f"error: --text {source}: no parquet files there")
    folder = folder.with_name(f"{folder.name}-{copies}")
    table = pa.concat_tables([pq.read_table(path, columns=["text", "id"]) for path in found])
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        path = folder / f"{number:03}.parquet"
        if not path.exists():
            aside = path.with_suffix(".tmp")
            with pq.ParquetWriter(aside, table.schema, compression="snappy") as writer:
                for _ in range(copies // files):
                    writer.write_table(table, row_group_size=1000)
            aside.rename(path)
    return folder


class Converter:
    """A process that converts on demand."""

    def __init__(self, name: str, python: Path | str, *arguments: str | Path) -> None:
        self.name, self._log = name, BENCH / f"{re.sub('[^a-z]+', '-', name.lower())}.log"
        environment = {**os.environ, **ONE_THREAD, "HF_HOME": str(BENCH / "hf")}
        environment.pop("PYTHONPATH", None)
        if name != FOUNDRY:
            environment |= {"PYTHONPATH": str(ROOT), "USE_TORCH": "0"}
        command = list(map(str, [python, ROOT / "benchmarks" / "convert_once.py", *arguments]))
        with open(self._log, "w") as log:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
            self._process = subprocess.Popen(command, env=environment, cwd=BENCH, **pipes)
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"error: {self.name} ended; see {self._log}")
        return json.loads(line)

    def run(self, workers: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{workers} {BENCH / 'convert-out'}\n")
        self._process.stdin.flush()
        result = self._answer()
        rate = result["tokens"] / result["cpu_s"] / 1e6
        print(f"  {self.name:<21} {workers:>4}  {rate:7.2f} M tokens/CPU-s  {result['wall_s']:6.1f} s", flush=True)
        return result

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def two_at_once() -> float:
    """How many times as much two processes of nothing but arithmetic get done as one: what 2 workers cannot exceed."""
    command = [sys.executable, "-c", "sum(i * i for i in range(30_000_000))"]
    seconds = []
    for count in (1, 2):
        began = time.perf_counter()
        for process in [subprocess.Popen(command) for _ in range(count)]:
            process.wait()
        seconds.append(time.perf_counter() - began)
    return 2 * seconds[0] / seconds[1]


def measure(args: argparse.Namespace) -> Iterator[Results]:
    """The results so far, after every round."""
    text = make_text(BENCH / "text", args.text, copies=args.copies, files=args.copies)
    much = make_text(BENCH / "text", args.text, copies=args.much_copies, files=8)
    converters = [
        Converter(FOUNDRY, foundry_python(), "foundry", text, args.tokenizer),
        *(Converter(name, sys.executable, "ours", text, args.tokenizer, name) for name in ENCODERS),
        *(Converter(name + MUCH, sys.executable, "ours", much, args.tokenizer, name) for name in FAST),
    ]
    results: Results = {each.name: {"1": [], "2": [], "bare": []} for each in converters}
    results[MACHINE] = {"2": []}
    for number in range(args.rounds):
        results[MACHINE]["2"].append(two_at_once())
        print(f"round {number + 1} of {args.rounds}; the machine: {results[MACHINE]['2'][-1]:.2f}", flush=True)
        for each in converters:
            for workers in ("1", "2") if each.name == FOUNDRY else ("1", "bare", "2"):
                results[each.name][workers].append(each.run(workers))
        yield results
    for each in converters:
        each.close()


def rates(runs: list[dict[str, Any]]) -> list[float]:
    return [run["tokens"] / run["cpu_s"] for run in runs]


def walls(runs: list[dict[str, Any]]) -> list[float]:
    return [run["wall_s"] for run in runs]


def over(a: list[float], b: list[float]) -> float:
    """The median over the rounds of a / b within each."""
    return median(x / y for x, y in zip(a, b, strict=True))


def share_of(part: str, runs: list[dict[str, Any]]) -> float:
    return median(run["shares"].get(part, 0) / sum(run["shares"].values()) for run in runs)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["", *("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])]


def goals(results: Results) -> list[list[str]]:
    """Rows of goal, what was measured, and whether it is met."""
    base, much = rates(results[FOUNDRY]["1"]), results["gigatoken" + MUCH]
    least = [(f"{goal:g}x LLM Foundry, {name}", over(rates(results[name]["1"]), base), goal) for name, goal in RATIOS]
    for name in (*(fast + MUCH for fast in FAST), "transformers"):
        share = over(rates(results[name]["1"]), rates(results[name]["bare"]))
        least.append((f"0.6 of the bare encoder, {name}", share, 0.6))
    machine = median(results[MACHINE]["2"])
    scaling = over(walls(much["1"]), walls(much["2"]))
    least.append((f"2 workers 1.7x as fast as one (two processes of arithmetic: {machine:.2f})", scaling, 1.7))
    size = much["1"][0]["bytes"] / much["1"][0]["tokens"]
    peak = max(run["peak_mb"] for name in ours(results) for runs in results[name].values() for run in runs)
    most = [("0.1 of the CPU for writing, at most, " + fast, writing(results, fast), 0.1) for fast in FAST]
    most += [("2.01 bytes a token, at most", size, 2.01), ("400 MB, the largest process", peak, 400)]
    rows = [[text, f"{got:.3g}", "yes" if got >= goal else "no"] for text, got, goal in least]
    return rows + [[text, f"{got:.4g}", "yes" if got <= goal else "no"] for text, got, goal in most]


def ours(results: Results) -> list[str]:
    return [name for name in results if name not in (FOUNDRY, MACHINE)]


def writing(results: Results, encoder: str) -> float:
    return share_of("writing", results[encoder + MUCH]["1"])


def report(results: Results, args: argparse.Namespace) -> list[str]:
    """The section of docs/performance.md."""
    base = rates(results[FOUNDRY]["1"])
    tokens, many = (results[name]["1"][0]["tokens"] / 1e6 for name in (FOUNDRY, "gigatoken" + MUCH))
    rows, inside, rounds = [], [], len(base)
    for name in (FOUNDRY, *ours(results)):
        runs = results[name]
        one = runs["1"]
        ratio = "" if MUCH in name else f"{over(rates(one), base):.1f}"
        seconds = [f"{median(walls(runs[workers])):.1f} s" for workers in ("1", "2")]
        peak, size = max(run["peak_mb"] for run in one + runs["2"]), one[0]["bytes"] / one[0]["tokens"]
        rows.append([name, f"{median(rates(one)) / 1e6:.2f}", ratio, *seconds, str(peak), f"{size:.3f}"])
        if name != FOUNDRY:
            bare = rates(runs["bare"])
            shares = [f"{share_of(part, one):.1%}" for part in PARTS]
            inside.append([name, f"{median(bare) / 1e6:.2f}", f"{over(rates(one), bare):.0%}", *shares])
    reached = goals(results)
    missed = "; ".join(f"{goal} ({got})" for goal, got, met in reached if met == "no")
    return [
        f"`python benchmarks/convert.py --copies {args.copies} --much-copies {args.much_copies} --rounds {rounds} "
        f"--write` on {platform.machine()}, {len(os.sched_getaffinity(0))} cores, {time.strftime('%Y-%m-%d')}: "
        f"{tokens:.1f}M GPT-2 tokens of English prose (the same {args.copies} times), sequences of 2,048 tokens, "
        f"medians of {rounds} round(s) in turn; one worker, but for the column that says two. Much text: {many:.0f}M "
        "tokens, so that what a start costs does not matter. Left out: imports and the start of our encoder. In the "
        "seconds: the start of the workers.",
        *table(
            ["converter", "M tokens / CPU-s", "against LLM Foundry", "wall", "2 workers", "peak MB", "bytes a token"],
            rows,
        ),
        "",
        "One worker of LLM Foundry is a process beside its parent, the least it runs with; ours is one process. The "
        "encoder alone (text column read and encoded, nothing else), and where our CPU time goes:",
        *table(["encoder", "bare, M tokens / CPU-s", "our share of that", *PARTS], inside),
        *table(["goal", "measured", "met"], reached),
        "",
        f"Missed: {missed or 'none'}.",
    ]


def write_section(lines: list[str]) -> None:
    """Replace what stands between the markers, or add the section."""
    block = "\n".join([MARK, *lines, END])
    page = PAGE.read_text() if PAGE.exists() else "# Performance\n"
    if MARK in page:
        page = re.sub(f"{re.escape(MARK)}.*?{re.escape(END)}", lambda _: block, page, flags=re.DOTALL)
    else:
        page = f"{page.rstrip()}\n\n## Conversion\n\n{block}\n"
    PAGE.write_text(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = ROOT.parent / "shared" / "data"
    parser.add_argument("--text", type=Path, default=shared / "fineweb" / "sample", help="a folder of parquet files")
    parser.add_argument("--tokenizer", type=Path, default=shared / "gpt2", help="a folder with GPT-2's tokenizer")
    parser.add_argument("--copies", type=int, default=8, help="how often the text is repeated")
    parser.add_argument(
        "--much-copies", type=int, default=512, help="the same, for many units of full size: 8 and more"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    args = parser.parse_args()
    BENCH.mkdir(exist_ok=True)
    for results in measure(args):
        (BENCH / "convert.json").write_text(json.dumps(results, indent=1))
        lines = report(results, args)
        if args.write:
            write_section(lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
