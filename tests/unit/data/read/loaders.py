"""Training loaders over small folders, and the rows they give: here, or in one process a rank."""

import json
import os
import socket
import subprocess
import sys

from moe.data import StreamSpec, build_train_loader
from tests.unit.data.conftest import EOS, SEQ_LEN

COMMON = {"seq_len": SEQ_LEN, "eos_id": EOS, "vocab_size": 300, "document_mask": True}


def loader_of(specs, *, batch=8, workers=0, seed=17, **more):
    return build_train_loader(specs, device_batch_size=batch, seed=seed, num_workers=workers, **{**COMMON, **more})


def train_loader(folder, *, remote=None, **more):
    """Over one folder."""
    return loader_of({"": StreamSpec(local=str(folder), remote=remote and str(remote), split="train")}, **more)


def numbers(loader):
    """The number of every row, batch by batch."""
    return [batch["tokens"][:, 0].tolist() for batch in loader]


def begun(loader, count):
    """The numbers of the first `count` batches, and the position behind them."""
    iterator = iter(loader)
    seen = [next(iterator)["tokens"][:, 0].tolist() for _ in range(count)]
    return seen, loader.state_dict()


RANK_SCRIPT = """
import json, sys
from moe.data import StreamSpec, build_train_loader
specs, batch, workers, start, vocab_size = [json.loads(text) for text in sys.argv[1:]]
specs = {name: StreamSpec(*spec) for name, spec in specs.items()}
loader = build_train_loader(specs, seq_len=16, eos_id=0, vocab_size=vocab_size,
                            document_mask=True, device_batch_size=batch, seed=17, num_workers=workers)
if start:
    loader.load_state_dict(start)
rows = [b["tokens"][:, 0].tolist() for b in loader]
print("ROWS", json.dumps(rows), flush=True)
import torch.distributed as dist
if dist.is_initialized():
    dist.barrier()
"""


def run_ranks(specs: dict[str, list], *, ranks: int, batch: int, start=None, vocab_size=300) -> list[list[list[int]]]:
    """Rows of every batch of each rank; `specs` holds StreamSpec's values."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = []
    for rank in range(ranks):
        env = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", RANK_SCRIPT, *map(json.dumps, (specs, batch, 0, start, vocab_size))]
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=180)[0] for process in started]
    assert [process.returncode for process in started] == [0] * ranks
    return [json.loads(output.split("ROWS ")[1].splitlines()[0]) for output in outputs]
