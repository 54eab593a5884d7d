"""Training loaders over small folders, and the rows they give: here, or in a process for each rank."""

import atexit
import json
import os
import resource
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from moe.data import StreamSpec, build_train_loader
from tests.ranks import on_ranks
from tests.unit.data.conftest import EOS, SEQ_LEN

COMMON = {"seq_len": SEQ_LEN, "eos_id": EOS, "vocab_size": 300, "document_mask": True}


def loader_of(specs, *, batch=8, workers=0, seed=17, **more):
    return build_train_loader(specs, device_batch_size=batch, seed=seed, num_workers=workers, **{**COMMON, **more})


def train_loader(folder, *, remote=None, **more):
    """Over one folder."""
    return loader_of({"": StreamSpec(local=str(folder), remote=remote and str(remote), split="train")}, **more)


def numbers(loader, after_each=None):
    """The number of every row, batch by batch."""
    try:
        return [(batch["tokens"][:, 0].tolist(), after_each and after_each())[0] for batch in loader]
    except RuntimeError as error:  # a traceback would keep torch's iterator, whose workers take 5 s to end in a cycle
        raise error.with_traceback(None) from None


def begun(loader, count):
    """The numbers of the first `count` batches, and the position behind them."""
    iterator = iter(loader)
    seen = [next(iterator)["tokens"][:, 0].tolist() for _ in range(count)]
    return seen, loader.state_dict()


def close_inherited_files():
    """In a forked process: what the tests before this one have left open. Gives how many are left beyond those that a
    new process has: sockets and pipes.
    """
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))  # pytest's are closed here
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if number > 2 and os.readlink(f"/proc/self/fd/{number}").startswith("/"):
                os.close(number)
    return max(0, len(os.listdir("/proc/self/fd")) - 10)


def run_ranks(
    specs: dict[str, list],
    *,
    ranks: int,
    batch: int,
    start=None,
    vocab_size=300,
    workers=0,
    files=None,
    in_step=False,
    **more,
) -> list[list[list[int]]]:
    """Rows of every batch of each rank. `specs` holds StreamSpec's values, `more` is the loader's; `files` may be open
    at once. in_step: after each batch they wait for each other, as in training.
    """
    with tempfile.TemporaryDirectory() as folder:

        def work(rank):
            atexit._clear()  # what is registered from here on is this rank's: Streaming's shared memory
            sizes = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            os.environ.update({name: str(size) for name, size in sizes.items()})
            if files:
                resource.setrlimit(resource.RLIMIT_NOFILE, (files + close_inherited_files(),) * 2)
            given = {name: StreamSpec(*spec) for name, spec in specs.items()}
            loader = loader_of(given, batch=batch, vocab_size=vocab_size, workers=workers, **more)
            if start:
                loader.load_state_dict(start)
            rows = numbers(loader, after_each=torch.distributed.barrier if in_step else None)
            Path(folder, str(rank)).write_text(json.dumps(rows))
            torch.distributed.barrier()
            atexit._run_exitfuncs()

        on_ranks(ranks, work)
        return [json.loads(Path(folder, str(rank)).read_text()) for rank in range(ranks)]
