"""Which files of a checkpoint a machine fetches and a rank verifies, where ranks that share a model have written it.

Decisions:
- As many ranks as parts: each reads the part of its number, whichever replica it belongs to. So from s3 a machine
  fetches the parts of its own ranks alone. Another number of ranks reads them all.
- What stands in one folder is hashed by all ranks that see it, each a share: one alone would have the others wait for
  longer than they do. Sizes, and all that is not divided, are rank 0's (`read_checkpoint`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from moe.common.errors import InputError
from moe.config import Config
from moe.train.checkpointing.checkpoints import Checkpoint, CheckpointError
from moe.train.checkpointing.files import hash_file
from moe.train.checkpointing.parts import part_files, part_name
from moe.train.distributed.ranks import MACHINES, RANK, WORLD_SIZE


def files_fetched(config: Config, manifest: dict[str, Any]) -> set[str] | None:
    """The files that this machine's ranks read; None where these are all."""
    divided = part_files(manifest)
    shards = WORLD_SIZE // config.parallelism.replicas if config.parallelism.fsdp2 else 0
    if MACHINES == 1 or not divided or divided != [part_name(number) for number in range(shards)]:
        return None
    local = WORLD_SIZE // MACHINES
    first = RANK // local * local
    own = {part_name(rank % shards) for rank in range(first, first + local)}
    return {name for name in manifest["files"] if name in own or name not in divided}


def standing(folder: Path) -> Path:
    """Where a checkpoint's folder lies: one caught in its replacement gets its name back as the start is recorded."""
    return folder if folder.is_dir() else folder.with_name(f".replaced-{folder.name}")


def verify_share(checkpoint: Checkpoint, *, everywhere: bool) -> None:
    """Hashes this rank's share of the parts.

    everywhere: all machines see the folder; else the first one's ranks divide the work.

    Raises:
        CheckpointError: a part's bytes have changed.
        InputError: another machine than the first cannot read it: the checkpoint may be sound.
    """
    local = WORLD_SIZE // MACHINES
    ranks = WORLD_SIZE if everywhere else local
    if ranks <= RANK:
        return
    folder = standing(checkpoint.path)
    for name in part_files(checkpoint.manifest)[RANK::ranks]:
        path = folder / name
        try:
            changed = hash_file(path) != checkpoint.manifest["files"][name]["xxh64"]
        except OSError as error:
            if local <= RANK:
                raise InputError(f"{path}: cannot be read on {os.uname().nodename} ({error.strerror})") from None
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
        if changed:
            raise CheckpointError(f"{path}: its bytes have changed since it was written (xxh64 differs)")
