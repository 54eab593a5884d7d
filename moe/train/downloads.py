"""What each machine of a run will fetch from a remote, for the plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moe.common.environment import number
from moe.common.units import size
from moe.config import Config
from moe.data.locations import open_folder
from moe.data.read.index import read_index
from moe.data.read.mixture import StreamSpec
from moe.train.distributed.ranks import WORLD_SIZE


def download_plan(config: Config, specs: Mapping[str, StreamSpec], shares: Mapping[str, float]) -> list[str]:
    """One line, or none where all data is here. shares: times that each stream is read in an epoch.

    A machine reads its own stripes, where their number is a multiple of the machines', else shards of all. Shards that
    are in `local` already are counted too.
    """
    machines = max(1, WORLD_SIZE // number("LOCAL_WORLD_SIZE", 1))
    stripes = config.train_data.num_canonical_nodes
    held = 0.0
    for name, spec in specs.items():
        if spec.remote is not None:
            shards = read_index(open_folder(Path(spec.local) / spec.split))
            held += sum(shard.bytes for shard in shards) * min(1.0, shares[name])
    if not held:
        return []
    often = "" if config.train_data.cache_limit is None else " in each epoch"
    if not config.train_data.shuffle and machines > 1:  # stripes take turns, row by row
        return [f"each of {machines} machines fetches all {size(held)}{often}: sequences are read as they lie"]
    if stripes % machines == 0:
        return [f"each machine fetches {size(held / machines)}{often}"]
    return [
        f"each of {machines} machines fetches all {size(held)}{often}; in a new run "
        f"train_data.num_canonical_nodes={machines} makes it {size(held / machines)}"
    ]
