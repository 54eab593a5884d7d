"""Memory of ranks that share a model: at its build, at a save and at a load (`make bench-shards`).

Each phase's peak (VmHWM) of each rank, beside what it may be: the imports as measured here, 1.5 times a rank's share of
weights, gradients and optimizer state, and the largest parameter. Ends with 1 where a phase takes more.
Also how long a save holds up training (the copy of the rank's share; the rest is written in the background), and takes;
beside it, how long all of it took to gather on rank 0, which is what held up training before there were parts.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from moe.model import Transformer  # noqa: E402
from moe.optim.groups import build_groups  # noqa: E402
from moe.optim.muon import Muon  # noqa: E402
from moe.train.checkpointing.checkpoints import load_state, read_checkpoint  # noqa: E402
from moe.train.checkpointing.host_memory import HostMemory  # noqa: E402
from moe.train.checkpointing.parts import Parts  # noqa: E402
from moe.train.checkpointing.rank_state import load_own, own_state  # noqa: E402
from moe.train.checkpointing.save_error import explained  # noqa: E402
from moe.train.checkpointing.together import Save, SharedWriter  # noqa: E402
from moe.train.distributed.sharding import shard_transformer  # noqa: E402
from tests.ranks import on_ranks  # noqa: E402

MB = 1_000_000
SHARE = 1.5
SHAPES = {  # parameters: about 200 million, 1 and 70
    "large": {"d_model": 512, "n_layers": 15, "n_heads": 8, "n_kv_heads": 4, "n_experts": 8, "expert_hidden": 1024},
    "tiny": {"d_model": 64, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "n_experts": 4, "expert_hidden": 64},
    "small": {"d_model": 256, "n_layers": 18, "n_heads": 4, "n_kv_heads": 2, "n_experts": 8, "expert_hidden": 640},
}


def peak() -> float:
    """MB since the last call."""
    status = Path("/proc/self/status").read_text().splitlines()
    found = next(int(line.split()[1]) * 1024 / MB for line in status if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return found


def measure(size: str, ranks: int, folder: Path, rank: int) -> None:
    """Of a tiny model first: what is loaded with the first use of a thing belongs to the imports."""
    torch.set_num_threads(1)
    _phases("tiny", ranks, folder / "tiny", rank)
    found, limit, line = _phases(size, ranks, folder / size, rank)
    for turn in range(ranks):
        dist.barrier()
        if turn == rank:
            print(json.dumps({**line, "limit": round(limit), **{k: round(v) for k, v in found.items()}}), flush=True)
    dist.barrier()
    assert max(found.values()) < limit, f"rank {rank}: {found} exceeds {limit:.0f} MB"


def _phases(size: str, ranks: int, folder: Path, rank: int) -> tuple[dict[str, float], float, dict[str, float]]:
    """MB of each phase, what they may be, and what else is told."""
    shape: dict[str, Any] = {"vocab_size": 8192, "eos_id": 0, "top_k": 2, **SHAPES[size]}
    if rank == 0:
        folder.mkdir()
    dist.barrier()
    peak()
    found = {"imports": peak()}

    def build() -> tuple[Transformer, Muon]:
        with torch.device("meta"):
            model = Transformer(seed=1, **shape)
        shard_transformer(model, world_size=ranks, on_gpu=False, seed=1)
        return model, Muon(build_groups(model, name="muon", lr=1e-3, weight_decay=0.1))

    model, optimizer = build()
    parameters = sum(p.numel() for p in model.parameters())
    largest = max(p.numel() for p in model.parameters()) * 4 / MB
    found["build"] = peak()
    for group in optimizer.param_groups:  # as a step leaves them
        for p in group["params"]:
            keys = ("momentum",) if group["kind"] == "muon" else ("exp_avg", "exp_avg_sq")
            optimizer.state[p] |= {key: torch.zeros_like(p) for key in keys}
            for value in optimizer.state[p].values():
                value.to_local().fill_(1.0)
            if group["kind"] == "adamw":
                optimizer.state[p]["step"] = torch.ones(())
            p.grad = torch.zeros_like(p)
            p.grad.to_local().fill_(1.0)
    state = sum(value.numel() for values in optimizer.state.values() for value in values.values())
    share = (2 * parameters + state) * 4 / ranks / MB
    peak()
    dist.barrier()
    start = time.monotonic()
    own = own_state(model, optimizer, HostMemory())
    held_up = time.monotonic() - start
    content = {"state": {"model": own.model, "optimizers": {"Muon": own.optimizer}}} if rank == 0 else None
    writer = SharedWriter(folder, url=None, remote=None, local_leader=rank == 0)
    save = Save(1, own.part, own.number, own.parts, own.shapes, content, {}, {})
    del own
    manifest = {"tokens": 1, "config": {}, "data": "", "eos_id": 0, "vocab_size": 8192}
    explain = partial(explained, 1, save_folder=folder, size=0)
    writer.write(save._replace(manifest=manifest), lambda size: None, explain)
    seconds = {"held_up_s": round(held_up, 2), "saved_s": round(time.monotonic() - start, 2)}
    found["save"] = peak()
    del model, optimizer, save, p, value, group  # a load is another process's
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    peak()
    model, optimizer = build()
    checkpoint = read_checkpoint(folder / "step-00000001", hashes=False)
    with Parts(checkpoint.path, checkpoint.manifest) as parts:
        load_own(model, optimizer, load_state(checkpoint.state_file)["state"], parts)
    found["load"] = peak()
    dist.barrier()
    start = time.monotonic()
    gathered = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    seconds["gathered_s"] = round(time.monotonic() - start, 2)
    del gathered
    limit = found["imports"] + SHARE * share + largest
    line = {"rank": rank, "parameters": parameters, "share": round(share), "largest": round(largest), **seconds}
    return found, limit, line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SHAPES, default="large")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    flags = parser.parse_args()
    for ranks in flags.ranks:
        with tempfile.TemporaryDirectory() as folder:
            on_ranks(ranks, partial(measure, flags.size, ranks, Path(folder)))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
