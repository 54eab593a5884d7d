"""train.py that tells what it does, and takes its time over checkpoints and evaluations, so that kills meet them.

Appends to `$CHAOS_TRACE`, one JSON object a line: life, event (start, step, eval or write), rank, pid; for a step also
its number and the hashes of its samples. Further faults: `$CHAOS_INF` ("3/1": an infinite loss at step 3 on rank 1),
`$CHAOS_HANG` ("20": a loader worker stops answering at its 20th sample).
"""

import json
import os
import sys
import time
from typing import Any

import xxhash

from moe.cli import train as train_command
from moe.train import run

TRACE, LIFE, SLOW = os.environ["CHAOS_TRACE"], int(os.environ["CHAOS_LIFE"]), float(os.environ["CHAOS_SLOW"])


def tell(event: str, **what: Any) -> None:
    line = json.dumps({"life": LIFE, "event": event, "rank": run.RANK, "pid": os.getpid(), **what}) + "\n"
    file = os.open(TRACE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)  # one write: lines of two ranks do not mix
    os.write(file, line.encode())
    os.close(file)


def trace() -> None:
    from moe.common import durable
    from moe.data import TokenDataset
    from moe.train.callbacks.losses import StepLosses
    from moe.train.checkpointing import files
    from moe.train.composer_model import MoEModel, TokenLoss

    batch_start, sync, update = StepLosses.batch_start, durable.sync, TokenLoss.update

    def step(self, state, logger):
        rows = [xxhash.xxh64_hexdigest(row.numpy().tobytes()) for row in state.batch["tokens"]]
        tell("step", step=int(state.timestamp.batch) + 1, rows=rows)
        batch_start(self, state, logger)

    def write(file):
        tell("write")
        time.sleep(SLOW)
        sync(file)

    def evaluate(self, *args):
        tell("eval")
        time.sleep(SLOW)
        update(self, *args)

    StepLosses.batch_start, TokenLoss.update = step, evaluate
    durable.sync = files.sync = write

    loss, get_item, got = MoEModel.loss, TokenDataset.get_item, []

    def infinite(self, *args):
        broken = os.environ.get("CHAOS_INF") == f"{len(got) + 1}/{run.RANK}"
        got.append(None)
        return {"total": loss(self, *args)["total"] * (float("inf") if broken else 1.0)}

    def hang(self, *args):
        got.append(None)
        while os.environ.get("CHAOS_HANG") == str(len(got)):
            time.sleep(1)
        return get_item(self, *args)

    if "CHAOS_INF" in os.environ:
        MoEModel.loss = infinite
    if "CHAOS_HANG" in os.environ:
        TokenDataset.get_item = hang


def open_folder(*args: Any) -> Any:
    trace()
    return plain_open(*args)


if __name__ == "__main__":
    tell("start")
    plain_open, run.open_folder = run.open_folder, open_folder  # the last step before the fit
    run.end(train_command.main(sys.argv[1:]))
