"""Whether all ranks of a start would train the same run: the same data, settings and versions, on every machine.

Each reads its own yaml and its own copy of the data. Ranks that differ would train side by side, each its own way: DDP
sends weights once, and rank 0's are saved.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from moe.common.errors import InputError
from moe.config import Config
from moe.data.read.fingerprint import shards_fingerprint
from moe.train.checkpointing.changes import versions
from moe.train.checkpointing.compatibility import data_difference, differing, same_data
from moe.train.distributed.ranks import WORLD_SIZE, on_each

if TYPE_CHECKING:
    from moe.train.inputs import Inputs

# where a machine keeps or finds its own, and what does not touch the result
OWN = ("alert_command", "load_path", "num_workers", "save_folder", "tokenizer")
OWN_PLACES = ("cache_limit", "local", "remote", "dataset", "include_path")
MOST_LINES = 20


def check_same_start(config: Config, inputs: Inputs) -> None:
    """Raises:
    InputError: on every rank: what rank 0 and the first that differs from it have.
    """
    if WORLD_SIZE == 1:
        return
    settings = {**dataclasses.asdict(config), "versions": versions(), "validation data": _validation(inputs)}
    mine = (os.uname().nodename, inputs.fingerprint, settings)
    (host, data, settings), *others = on_each(lambda: mine, here=True)
    for rank, (there, other_data, other_settings) in enumerate(others, 1):
        lines = [f"{key}: {was} on {host}, {is_} on {there}" for key, was, is_ in _differing(settings, other_settings)]
        if not same_data(data, other_data):
            lines.append(f"{data_difference(data, other_data)} (was: on {host}, is: on {there})")
        if lines:
            listed = "\n".join(f"  {line}" for line in lines[:MOST_LINES])
            raise InputError(
                f"rank {rank} on {there} would train another run than rank 0 on {host}:\n{listed}\n"
                "  start all machines with one yaml, the same settings, the same data and the same packages"
            )


def _validation(inputs: Inputs) -> dict[str, str]:
    """What the folders of the validation hold, which no manifest tells."""
    return {name or "all": shards_fingerprint(spec.local) for name, spec in inputs.eval_streams.items()}


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    found = differing(one, other).items()
    return [
        (key, was, is_)
        for key, (was, is_) in found
        if key.split(".")[0] not in (*OWN, "loggers") and key.split(".")[-1] not in OWN_PLACES
    ]
