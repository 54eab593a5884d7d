"""`demo` and `quick` with `auto` for rate, warmup and weight decay against the rates set by hand, seed by seed.

    python benchmarks/learning_yamls.py --data data/demo/mds --tokenizer data/demo/tokenizer demo
    python benchmarks/learning_yamls.py --data data/fineweb-10bt --tokenizer gpt2 quick --seeds 2
    python benchmarks/learning_yamls.py --report      docs/learning.md's table from the results alone

- Each run is `moe train` of the yaml as it stands, but for the seed, the data's place, the evaluation (all of the
  validation split, at the end) and, by hand, the four keys of `hand`.
- A run that ended is not made again: its result stays in benchmarks/results/learning_yamls, with the code's commit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from learning_run import commit
from learning_stats import interval

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "learning_yamls"
HAND = {"optimizer.lr": "8.0e-3", "optimizer.weight_decay": "0.1", "optimizer.adamw.lr": "null"}
HAND_WARMUP = {"demo": "60000tok", "quick": "100000tok"}
WORSE = 0.02  # nats: by which auto may end above the rate set by hand


def hand(name: str) -> dict[str, str]:
    """What the yaml had before it had `auto`."""
    return {**HAND, "scheduler.t_warmup": HAND_WARMUP[name]}


def train(name: str, auto: bool, seed: int, data: Path, tokenizer: str) -> dict[str, Any]:
    """Final validation loss in nats a token, and what made it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "seed": seed, "run_name": f"{name}-{seed}", "save_folder": folder, "tokenizer": tokenizer,
            "train_data.local": data, "eval_data.local": data, "eval_data.max_batches": -1, "eval_interval": "100000ba",
            "save_interval": "100000ba",
            **{key: "auto" if auto else value for key, value in hand(name).items()},
        }  # fmt: skip
        words = [f"{key}={value}" for key, value in settings.items()]
        subprocess.run([sys.executable, ROOT / "train.py", ROOT / f"yamls/{name}.yaml", *words], check=True)
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    losses = [row["metrics/eval/loss"] for row in rows if "metrics/eval/loss" in row]
    return {"loss": losses[-1], "commit": commit(), "preload": Path(os.environ.get("LD_PRELOAD", "")).name}


def report() -> str:
    lines = ["| yaml | seeds | by hand | by auto | difference | no worse |", "| --- | --- | --- | --- | --- | --- |"]
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        hand, auto = found["hand"], found["auto"]
        pairs = [(hand[seed]["loss"], auto[seed]["loss"]) for seed in hand if seed in auto]
        mean, half = interval([other - one for one, other in pairs])
        values = [statistics.mean(values) for values in zip(*pairs, strict=True)]
        difference = f"{mean:+.3f}" + ("" if half is None else f" ± {half:.3f}")
        shown = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {path.stem} | {len(pairs)} | {shown} | {difference} | {'yes' if mean <= WORSE else 'no'} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=("demo", "quick"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokenizer")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.report:
        page = ROOT / "docs" / "learning.md"
        text, count = re.subn(
            r"(<!-- yamls -->\n).*?(<!-- /yamls -->)",
            lambda m: f"{m[1]}{report()}\n{m[2]}",
            page.read_text(),
            flags=re.S,
        )
        assert count == 1, f"{page} has no place for it"
        page.write_text(text)
        return 0
    if not args.name or args.data is None or args.tokenizer is None:
        parser.error("give a yaml, --data and --tokenizer, or --report")
    path = RESULTS / f"{args.name}.json"
    found = json.loads(path.read_text()) if path.is_file() else {"hand": {}, "auto": {}}
    for seed in map(str, range(args.seeds)):
        for kind in ("hand", "auto"):
            if seed not in found[kind]:
                found[kind][seed] = train(args.name, kind == "auto", int(seed), args.data.resolve(), args.tokenizer)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
