"""What a run takes of several machines: memory of a rank, bytes on the network, what of them hides, checkpoints, data.

A model: no cluster has run it. What is summed and gathered was counted on 4 gloo ranks (tests/unit/plan/wire.py).
P parameters, R of them outside of blocks (embedding, head), N ranks, M machines of n ranks, m microbatches a step; of
P_products, the blocks' matrices but for routers, b bytes each are gathered: 2 under amp, else 4.
Bytes that leave one machine in a step, by ring collectives, as NCCL lays them (each boundary is crossed once):

| plan  | gradients, fp32    | weights gathered                                 | updates of Muon           |
|-------|--------------------|--------------------------------------------------|---------------------------|
| DDP   | 2 x 4P (N-1)/N     | none                                             | none                      |
| FSDP2 | m x 4P (N-1)/N     | m x (4 (2P-R) - 2 (4-b) P_products) (N-1)/N      | 2 x 4 P_matrices (M-1)/MM |
| HSDP  | m x 2 x 4P (M-1)/M | none: inside the machine                         | none: inside the machine  |

- FSDP2 pads a tensor's rows to a multiple of the ranks that share it (HSDP: n). Experts whose number is none are split
  along another dimension (moe/model/split.py); where none divides, E experts on more ranks are moved as so many, and a
  rank that has one holds all of it.
- What is outside of blocks stays gathered from the forward to the backward pass.
- gloo has no reduce-scatter (it sums, twice the bytes) and no all-to-all (Muon's moves are two gathers of all
  matrices); the formulas are NCCL's, which has both. Stacks of matrices of a shape are padded to a multiple of N: the
  most that this can be, for one matrix a layer, is counted.
- DDP sums once a step, in the backward pass of the last microbatch; FSDP2 gathers each block for its forward and its
  backward pass and scatters its gradient, each microbatch. HSDP shards over a machine's ranks, and sums over machines.
- P_matrices: all that Muon trains but experts that are split by expert, which stay where they are. Others are moved for
  as many layers at once as give every rank some, padded as the matrices are (muon.py).
- Behind a pass hides what is asked for during it: DDP's sum behind the last microbatch's backward pass (2/3 of its
  time), FSDP2's and HSDP's behind the full step. Muon's gathers hide behind nothing.
- Inside a machine bytes are counted as free: NVLink has ten times the network's bandwidth. Without it they are not.
- Experts change none of these formulas but by P: a gathered block holds all its experts, chosen or not. Width w and
  depth L give P ~ 3 L E w F; the time to compute grows with top_k instead of E, so the network hides the worse the
  sparser the model is.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from moe.common.errors import InputError
from moe.config import Config
from moe.model.memory import optimizer_bytes
from moe.model.split import expert_dim, expert_shapes, is_padded
from moe.model.step import Step, make_step
from moe.plan.estimate import NCCL, GpuMemory, find_work, gpu_memory, largest_microbatch, rank_batch
from moe.plan.gpus import Gpu

PLANS = ("DDP", "FSDP2", "HSDP")
BUCKETS = 4  # bytes a parameter: DDP's copy of the gradients, as it sums them
DISK = 1e9  # bytes a second that a rank writes, for the time of a checkpoint
MOST_GPUS = 65_536
TOKEN_BYTES = 2  # of a converted token, with a vocabulary below 65,536; 4 above


@dataclass(frozen=True)
class Plan:
    """Of one step on one rank, or one machine where it says so. Bytes and seconds."""

    name: str
    fits: bool
    microbatch: int
    memory: int
    gradients: float  # bytes that leave a machine
    weights: float
    updates: float
    compute: float
    network: float  # seconds, of all that leaves
    exposed: float  # of these, what no computing hides
    checkpoint: float  # bytes that one rank writes
    checkpoint_seconds: float

    @property
    def efficiency(self) -> float:
        return self.compute / (self.compute + self.exposed)


@dataclass(frozen=True)
class Loading:
    """Of one machine: bytes a second that its loaders read, the run's data, the share of it that is fetched there, and
    the cache (train_data.cache_limit) below which shards are mixed in a narrower window.
    """

    rate: float
    data: float
    share: float
    cache: float


@dataclass(frozen=True)
class Machines:
    """`ranks` GPUs in machines of `per_node`, each with `network` bytes a second to the others."""

    ranks: int
    per_node: int
    network: float

    @property
    def count(self) -> int:
        return -(-self.ranks // self.per_node)


def bandwidth(text: str) -> float:
    """`400Gb` (bits) or `50GB` (bytes), a second -> bytes a second.

    Raises:
        InputError: neither.
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?) ?(Gb|GB|Mb|MB)(?:/s|it/s|ps)?", text.strip())
    if found is None or float(found[1]) <= 0:
        raise InputError(f"--network ({text}) is no bandwidth; write 400Gb (bits a second, as of a link), or 50GB")
    unit = 1e9 if found[2][0] == "G" else 1e6
    return float(found[1]) * unit / (8 if found[2][1] == "b" else 1)


def find_machines(gpus: int, per_node: int, network: str, config: Config) -> Machines:
    """Raises InputError for numbers that no run can have."""
    if not 1 <= gpus <= MOST_GPUS:
        raise InputError(f"--gpus ({gpus}) must be at least 1 and at most {MOST_GPUS:,}")
    if not 1 <= per_node <= gpus:
        raise InputError(f"--per-node ({per_node}) must be at least 1 and at most --gpus ({gpus})")
    if gpus % per_node:
        raise InputError(f"--gpus ({gpus}) must be a multiple of --per-node ({per_node}): machines have as many each")
    if config.global_train_batch_size % gpus:
        raise InputError(
            f"--gpus ({gpus}) must divide global_train_batch_size ({config.global_train_batch_size}); "
            f"set global_train_batch_size={-(-config.global_train_batch_size // gpus) * gpus}"
        )
    return Machines(gpus, per_node, bandwidth(network))


def find_plans(config: Config, vocab_size: int, gpu: Gpu, machines: Machines, *, mfu: float) -> list[Plan]:
    """DDP, FSDP2 over all ranks, HSDP with a replica on each machine; the latter only where there are two."""
    shards = {"DDP": 1, "FSDP2": machines.ranks, "HSDP": machines.per_node}
    names = PLANS if machines.count > 1 and machines.per_node > 1 else PLANS[:2]
    return [_plan(name, shards[name], config, vocab_size, gpu, machines, mfu) for name in names]


def _plan(name: str, shards: int, config: Config, vocab_size: int, gpu: Gpu, machines: Machines, mfu: float) -> Plan:
    ranks, count = machines.ranks, machines.count
    batch = rank_batch(config, ranks)
    step = make_step(config, vocab_size, n_gpus=shards, microbatch=1)
    parts, spread = step.count, _padded(config.model.n_experts, shards)
    padding, apart = _experts(step, shards)
    width = _gathered_width(step)
    extra = shared_bytes(step, shards, ranks)
    asked = config.device_train_microbatch_size
    microbatch = largest_microbatch(step, gpu.memory - extra, batch) if asked == "auto" else min(int(asked), batch)
    found: GpuMemory = gpu_memory(replace(step, microbatch=max(1, microbatch), accumulated=microbatch < batch))
    memory = found.total + extra
    microbatches = -(-batch // max(1, microbatch))

    full = 4.0 * parts.total
    moved = full + 4.0 * (padding + (spread - 1) * parts.router)
    root = 4.0 * (parts.embedding + parts.head + config.model.d_model)
    products = padding + parts.experts + parts.attention + parts.shared + parts.dense
    gathered = 2 * moved - root - 2 * (4.0 - width) * products
    ring = (ranks - 1) / ranks if count > 1 else 0.0
    between = (count - 1) / count
    matrices = parts.attention + spread * parts.router + parts.shared + parts.dense
    turned = 2 * 4.0 * (matrices * _padded(config.model.n_layers, shards) + apart) / count
    gradients, weights, updates = {
        "DDP": (2 * full * ring, 0.0, 0.0),
        "FSDP2": (
            microbatches * moved * ring,
            microbatches * gathered * ring,
            turned * between * step.muon,
        ),
        "HSDP": (microbatches * 2 * moved * between, 0.0, 0.0),
    }[name]

    work = find_work(config, vocab_size)
    peak = 1e12 * (gpu.fp32 if config.precision == "fp32" else gpu.bf16)
    compute = work.flops_per_token * work.tokens_per_step / (ranks * peak * mfu)
    compute *= 4 / 3 if config.activation_checkpointing else 1
    behind = compute / microbatches * 2 / 3 if name == "DDP" else compute
    hidden = max(0.0, (gradients + weights) / machines.network - behind)
    checkpoint = (full + optimizer_bytes(step)) * (1 + padding / parts.total) / shards  # of one with an expert
    return Plan(
        name=name,
        fits=microbatch > 0 and memory <= gpu.memory,
        microbatch=max(1, microbatch),
        memory=memory,
        gradients=gradients,
        weights=weights,
        updates=updates,
        compute=compute,
        network=(gradients + weights + updates) / machines.network,
        exposed=hidden + updates / machines.network,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint / DISK,
    )


def shared_bytes(step: Step, shards: int, ranks: int) -> int:
    """What each of `ranks` GPUs takes beside the step's own memory, because the model is divided among `shards` of them
    or, with one, held by each (DDP).
    """
    if shards == 1:
        return BUCKETS * step.count.total + NCCL if ranks > 1 else 0
    padding, _ = _experts(step, shards)
    state = 2 * 4.0 + optimizer_bytes(step) / step.count.total  # weights and gradients with it
    return int(padding * (state / shards + (2 * _gathered_width(step) + 4.0) / step.n_layers))  # two blocks, a gradient


def _gathered_width(step: Step) -> float:
    """Bytes of a parameter that is gathered for a product."""
    return 2.0 if step.bf16 else 4.0


def _padded(rows: int, ranks: int) -> float:
    """How many times its size a tensor has once its rows are a multiple of the ranks."""
    return -(-rows // ranks) * ranks / rows


def _experts(step: Step, shards: int) -> tuple[float, float]:
    """Parameters that FSDP2 adds to those of all experts, and what Muon moves there and back of them."""
    padding = apart = 0.0
    n_experts, layers = step.n_experts, step.sparse
    for shape in expert_shapes(n_experts, step.d_model, step.expert_hidden):
        expert = shape[1] * shape[2]
        if is_padded(shape, shards):
            padding += layers * expert * n_experts * (_padded(n_experts, shards) - 1)
        elif expert_dim(shape, shards):
            together = -(-shards // n_experts)
            batches = [min(together, layers - first) * n_experts for first in range(0, layers, together)]
            apart += expert * sum(batch * _padded(batch, shards) for batch in batches)
    return padding, apart


def find_loading(config: Config, vocab_size: int, machines: Machines, plan: Plan) -> Loading:
    """The data is what the run reads of it, once; a machine reads its own stripes where they divide evenly."""
    from moe.data.read.order import window_of  # numpy: `moe estimate` starts without
    from moe.data.write.shards import SIZE_LIMIT

    work = find_work(config, vocab_size)
    width = TOKEN_BYTES if vocab_size <= 1 << 16 else 2 * TOKEN_BYTES
    seconds = plan.compute + plan.exposed
    stripes, streams = config.train_data.num_canonical_nodes, max(1, len(config.train_data.streams or ()))
    own = stripes % machines.count == 0
    shards = (window_of(stripes, streams) + 2) * (stripes // machines.count or 1) * streams  # as dataset.py checks it
    return Loading(
        rate=work.tokens_per_step * width / machines.count / seconds,
        data=float(work.tokens * width),
        share=1 / machines.count if own else 1.0,
        cache=min(float(shards * SIZE_LIMIT), float(work.tokens * width)),
    )


def as_json(machines: Machines, plans: list[Plan], loading: Loading) -> dict[str, Any]:
    return {
        "machines": {**asdict(machines), "count": machines.count},
        "plans": [{**asdict(plan), "efficiency": plan.efficiency} for plan in plans],
        "loading": asdict(loading),
    }
