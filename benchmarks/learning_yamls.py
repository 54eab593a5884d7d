"""`demo` and `quick` before and after a change of their settings, seed by seed.

    python benchmarks/learning_yamls.py decay demo --data data/demo/mds --tokenizer data/demo/tokenizer
    python benchmarks/learning_yamls.py decay quick --data data/fineweb-10bt --tokenizer gpt2 --seeds 2
    python benchmarks/learning_yamls.py --report      docs/learning.md's tables from the results alone

- Each run is `moe train` of the yaml, but for the settings of the side, the seed, the data's place and the evaluation
  (all of the validation split, at the end).
- A run that ended is not made again: its result stays in benchmarks/results/learning_yamls, with the code's commit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
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
WORSE = 0.02  # nats: by which `after` may end above `before`
HAND_WARMUP = {"demo": "60000tok", "quick": "100000tok"}
SIDES = ("before", "after")


def rates(name: str, side: str) -> dict[str, Any]:
    """Set by hand, or by the rule."""
    hand = {"optimizer.lr": "8.0e-3", "optimizer.weight_decay": "0.1", "optimizer.adamw.lr": "null"}
    hand["scheduler.t_warmup"] = HAND_WARMUP[name]
    return hand if side == "before" else dict.fromkeys(hand, "auto")


def decay(name: str, side: str) -> dict[str, Any]:
    """A cosine to a tenth, or a line to a twentieth."""
    found = {"before": ("cosine_with_warmup", 0.1), "after": ("linear_decay_with_warmup", 0.05)}[side]
    return dict(zip(("scheduler.name", "scheduler.alpha_f"), found, strict=True))


QUESTIONS = {"rates": rates, "decay": decay}
HEADS = {"rates": ("by hand", "by auto"), "decay": ("cosine to 0.1", "linear to 0.05")}


def train(question: str, name: str, side: str, seed: int, data: Path, tokenizer: str) -> dict[str, Any]:
    """Final validation loss in nats a token, what it cost, and what made it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "seed": seed, "run_name": f"{name}-{seed}", "save_folder": folder, "tokenizer": tokenizer,
            "train_data.local": data, "eval_data.local": data, "eval_data.max_batches": -1, "eval_interval": "100000ba",
            "save_interval": "100000ba", **QUESTIONS[question](name, side),
        }  # fmt: skip
        words = [f"{key}={value}" for key, value in settings.items()]
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, ROOT / "train.py", ROOT / f"yamls/{name}.yaml", *words], check=True)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    losses = [row["metrics/eval/loss"] for row in rows if "metrics/eval/loss" in row]
    made_by = {"commit": commit(), "preload": Path(os.environ.get("LD_PRELOAD", "")).name}
    return {"loss": losses[-1], "cpu_seconds": round(end.ru_utime - start.ru_utime, 1), **made_by}


def report(question: str) -> str:
    heads = ["yaml", "seeds", *HEADS[question], "difference", "no worse"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for path in sorted(RESULTS.glob(f"{question}-*.json")):
        sides = [json.loads(path.read_text())[side] for side in SIDES]
        pairs = [(sides[0][seed]["loss"], sides[1][seed]["loss"]) for seed in sides[0] if seed in sides[1]]
        mean, half = interval([after - before for before, after in pairs])
        values = [statistics.mean(values) for values in zip(*pairs, strict=True)]
        difference = f"{mean:+.3f}" + ("" if half is None else f" ± {half:.3f}")
        shown = " | ".join(f"{value:.3f}" for value in values)
        name = path.stem.removeprefix(f"{question}-")
        lines.append(f"| {name} | {len(pairs)} | {shown} | {difference} | {'yes' if mean <= WORSE else 'no'} |")
    return "\n".join(lines) if len(lines) > 2 else "Not run yet."


def write_report(page: Path) -> None:
    text = page.read_text()
    for question in QUESTIONS:
        marks = rf"(<!-- yamls: {question} -->\n).*?(<!-- /yamls -->)"
        made = report(question).replace("\\", r"\\")
        text, count = re.subn(marks, rf"\g<1>{made}\n\g<2>", text, flags=re.DOTALL)
        assert count == 1, f"{page} has no place for {question}"
    page.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", choices=tuple(QUESTIONS))
    parser.add_argument("name", nargs="?", choices=tuple(HAND_WARMUP))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokenizer")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.report:
        write_report(ROOT / "docs" / "learning.md")
        return 0
    if not args.name or args.data is None or args.tokenizer is None:
        parser.error("give a question, a yaml, --data and --tokenizer, or --report")
    path = RESULTS / f"{args.question}-{args.name}.json"
    found = json.loads(path.read_text()) if path.is_file() else {side: {} for side in SIDES}
    for seed in map(str, range(args.seeds)):
        for side in SIDES:
            if seed not in found[side]:
                made = train(args.question, args.name, side, int(seed), args.data.resolve(), args.tokenizer)
                found[side][seed] = made
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
