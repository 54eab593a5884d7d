"""A Mixture of Experts made of a trained dense model, against what the same compute buys otherwise.

    python benchmarks/upcycle.py --text FOLDER    trains what is missing (parquet in FineWeb's schema, or a hub name)
    python benchmarks/upcycle.py --report         docs/upcycling.md and its picture from the results alone

- First a dense model is trained. From there on, in as many FLOPs: the dense model further; the model that
  `--upcycle copies=8,pieces=4` makes of it; a Mixture of Experts of that shape from random weights. And one of these
  with the FLOPs of both parts. Equal FLOPs are the model's own, forward and backward; the steps follow from them.
- The second part reads other sequences than the first, the same ones in the same order for all. The scratch model with
  the FLOPs of both reads the first part's before.
- Each training has a schedule of its own, warmup and cosine. From random weights the rate is that of docs/learning.md;
  of the two that resume from trained weights it is swept on one seed, in the same way for both.
- The loop is that of learning_run.py, results and claims those of learning.py: killed and started again, or started
  twice, it makes what is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from learning import ROOT, claim, identity, train_missing
from learning_matrix import Results
from learning_run import BATCH, Data, Run, build, data_order, evaluate, open_data, train
from upcycle_arms import BASE, RECIPE, pending
from upcycle_report import write_report

from moe.use.export.upcycle import Upcycled


def rows_of(run: Run, data: Data) -> Any:
    """The sequences it reads: the first part's, the second part's, or both."""
    first = BASE.steps * BATCH
    rows = data_order(len(data.train), 2 * first, run.seed)
    if run == replace(BASE, seed=run.seed) or run.share > 1:
        return rows[: run.steps * BATCH]
    return rows[first : first + run.steps * BATCH]


def make(run: Run, data: Data, weights: Path) -> dict[str, Any]:
    """Trains a run. The dense model of a seed is kept in `weights`, where those that start from it find it."""
    import torch

    model, dense = build(run, data), weights / f"dense-seed{run.seed}.pt"
    base = replace(BASE, seed=run.seed)
    if run.start != "random" and not dense.is_file():  # the result in git came from another machine
        make(base, data, weights)
    if run.start == "dense":
        model.load_state_dict(torch.load(dense, weights_only=True))
    elif run.start == "upcycled":
        model.load_state_dict(dict(Upcycled(torch.load(dense, weights_only=True), model.state_dict(), RECIPE)))
    before = evaluate(model, data)
    found = {**train(run, data, rows_of(run, data), model), "before": round(before, 7)}
    if run == base:
        torch.save(model.state_dict(), dense)
    return found


def work(results: Results, folder: Path, shards: Path) -> None:
    digest, data = identity(shards), open_data(shards)
    while runs := pending(results):
        for run in runs:
            with claim(folder / "claims", run) as mine:
                if not mine or results.get(run) is not None:
                    continue
                found = {**make(run, data, folder), "data": digest}
                results.put(run, found)
            print(
                f"{time.strftime('%H:%M:%S')}  {run.name}: {found['before']} -> {found['final']}, "
                f"{found['cpu_seconds']:.0f} CPU-s",
                flush=True,
            )
            break
        else:
            time.sleep(2)  # the others are in another process's hands


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", default=None, help="folder or hub name of the text; needed once")
    add("--data", type=Path, default=ROOT / "data" / "learning", help="tokenizer, shards and the dense models' weights")
    add("--results", type=Path, default=ROOT / "benchmarks" / "results" / "upcycle")
    add("--jobs", type=int, default=2, help="runs at a time, one thread each")
    add("--report", action="store_true", help="write docs/upcycling.md and docs/upcycling.png, train nothing")
    args = parser.parse_args()
    results = Results(args.results)
    if args.report:
        write_report(results, ROOT / "docs")
        return 0
    return train_missing(args, results, work)


if __name__ == "__main__":
    sys.exit(main())
