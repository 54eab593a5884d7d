"""The part of `moe estimate` about several machines: --gpus 64 --per-node 8 --network 400Gb."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from moe.common.errors import InputError
from moe.common.units import clock, size

if TYPE_CHECKING:
    from moe.config import Config
    from moe.plan.cluster import Machines, Plan
    from moe.plan.gpus import Gpu


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--gpus", type=int, help="the estimate of a cluster of so many, beside the rest")
    add("--per-node", type=int, help="GPUs of one machine, with --gpus (default: 8, or all of fewer)")
    add("--network", help="of one machine to the others, with --gpus: 400Gb, or 50GB (default: 400Gb)")


def estimate_cluster(
    args: argparse.Namespace, config: Config, vocab_size: int, gpu: Gpu, mfu: float
) -> tuple[list[str], dict[str, Any] | None]:
    """Lines for people and everything as JSON; nothing without --gpus.

    Raises:
        InputError: --per-node or --network without it; numbers that no run can have.
    """
    from moe.plan.cluster import as_json, find_loading, find_machines, find_plans

    if args.gpus is None:
        for flag, given in (("--per-node", args.per_node), ("--network", args.network)):
            if given is not None:
                raise InputError(f"{flag} ({given}) needs --gpus; give both")
        return [], None
    per_node = min(8, args.gpus) if args.per_node is None else args.per_node
    machines = find_machines(args.gpus, per_node, args.network or "400Gb", config)
    plans = find_plans(config, vocab_size, gpu, machines, mfu=mfu)
    best = min(plans, key=lambda plan: (not plan.fits, plan.compute + plan.exposed))
    loading = find_loading(config, vocab_size, machines, best)
    lines = list(_lines(config, machines, plans, best, gpu, mfu))
    lines.append(
        f"  loading: {size(loading.rate)} a second on each machine; data of {size(loading.data)}, "
        f"{size(loading.data * loading.share)} of it fetched by each where it is remote"
    )
    lines.append(f"  (train_data.cache_limit below {size(loading.cache)} mixes shards in a narrower window)")
    if machines.count > 1 and loading.share == 1:
        lines.append(
            f"  (train_data.num_canonical_nodes={machines.count}, in a new run: {1 / machines.count:.0%} of it)"
        )
    return lines, as_json(machines, plans, loading)


def _lines(config: Config, machines: Machines, plans: list[Plan], best: Plan, gpu: Gpu, mfu: float) -> Iterator[str]:
    many = f"{machines.count} machine{'s' * (machines.count > 1)} of {machines.per_node}"
    link = f"{8 * machines.network / 1e9:g} Gb/s each"
    yield f"CLUSTER of {machines.ranks} {gpu.name}, {many}, {link}; a model: docs/cluster.md"
    yield f"  {'':<40}" + "".join(f"{plan.name:>14}" for plan in plans)

    def row(name: str, *cells: str) -> str:
        return f"  {name:<40}" + "".join(f"{cell:>14}" for cell in cells)

    yield row("memory of a rank", *(f"{plan.memory / 1e9:.1f} GB" for plan in plans))
    yield row(f"fits into {gpu.memory / 1e9:.0f} GB", *("yes" if plan.fits else "no" for plan in plans))
    yield row("microbatch, sequences", *(str(plan.microbatch) for plan in plans))
    yield "  leaves a machine in a step:"
    for name in ("gradients", "weights", "updates"):
        yield row(f"  {name}", *(size(getattr(plan, name)) for plan in plans))
    yield row(f"time to compute a step at {mfu:.0%}", *(_seconds(plan.compute) for plan in plans))
    yield row("time on the network", *(_seconds(plan.network) for plan in plans))
    yield row("  of that overlapped with compute", *(_seconds(plan.network - plan.exposed) for plan in plans))
    yield row("step's time spent computing", *(f"{plan.efficiency:.0%}" for plan in plans))
    yield row("checkpoint, written by one rank", *(size(plan.checkpoint) for plan in plans))
    yield row("  in, at 1 GB/s", *(_seconds(plan.checkpoint_seconds) for plan in plans))
    if best.fits:
        yield f"  Fastest of those that fit: {best.name}."
    else:
        yield "  None fits: activation_checkpointing=true, more GPUs, or a smaller model."


def _seconds(seconds: float) -> str:
    return clock(seconds) if seconds >= 60 else f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
