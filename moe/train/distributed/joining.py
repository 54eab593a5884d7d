"""This process becomes a rank: it meets the others (meeting.py), then torch's process group is made."""

from __future__ import annotations

import os
from datetime import timedelta

from moe.common.units import note, say
from moe.config import Config, parse_seconds
from moe.train.distributed.meeting import Member, NotMet, meet
from moe.train.distributed.peers import Peers
from moe.train.distributed.ranks import LOCAL_RANK, RANK, WORLD_SIZE
from moe.train.stop import Stopped

DIST_TIMEOUT = 1800.0  # seconds; rank 0 may hash large checkpoints while the others wait


def join(config: Config, *, on_gpu: bool) -> Peers:
    """Makes the process group of WORLD_SIZE ranks.

    Raises:
        InputError: the ranks do not fit together.
        Stopped: somebody has not come in `start_timeout`.
    """
    import torch.distributed
    from composer.utils import get_device

    me = Member.here()

    def say_here(line: str) -> None:  # each machine's first rank: rank 0 may be the one that is missing
        if RANK == 0:
            say(line)
        elif LOCAL_RANK == 0:
            note(f"{me.host}: {line}")

    try:
        store, members = meet(me, seconds=parse_seconds(config.start_timeout), say=say_here)
    except NotMet as missing:
        say_here(f"not started: {missing}; nothing has changed; run the same command again")
        raise Stopped from None
    store.set_timeout(timedelta(seconds=DIST_TIMEOUT))
    if not on_gpu:  # torch records Python's stack at each collective; nobody reads it of gloo's
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "0")
    backend = get_device("gpu" if on_gpu else "cpu").dist_backend
    torch.distributed.init_process_group(
        backend, store=store, rank=RANK, world_size=WORLD_SIZE, timeout=timedelta(seconds=DIST_TIMEOUT)
    )
    return Peers(members, RANK, store)
