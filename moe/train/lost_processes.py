"""Whether an error says that another process of the run is gone: a loader's worker, or a rank.

Such an end is an interruption: this rank has done nothing wrong, and the same command resumes. Before a start's first
step it is an error all the same, since it may come again at each start; not so on several machines, where one may be
preempted at any moment, and the lost rank's own code says whether it has failed.

- A worker: recognised by where the error was raised. torch's handler of SIGCHLD raises in whatever line the main thread
  is in; a loader that waits for a batch finds dead workers; one that takes a batch from a dying worker loses the
  connection to it.
- A rank: recognised by the text, as there is nothing else. Gloo raises a plain RuntimeError, and NCCL one class for all
  that can go wrong (torch 2.7 to 2.11).
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from moe.common.units import complain
from moe.train.callbacks.progress import Progress
from moe.train.distributed.ranks import MACHINES
from moe.train.stop import Stopped

LOADER = "torch.utils.data.dataloader"
ON_CHILD_DEATH = "torch.utils.data._utils.signal_handling"
RANK_LOST = re.compile(r"gloo.*by peer|NCCL.*remote process")


def is_lost_worker(error: BaseException) -> bool:
    """Whether a loader's worker was killed, or has ended by itself."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [frame.f_globals.get("__name__") for frame in frames]
    if isinstance(error, (ConnectionResetError, EOFError)):
        return LOADER in modules
    if not isinstance(error, RuntimeError) or not frames:
        return False
    return modules[-1] == ON_CHILD_DEATH or (modules[-1] == LOADER and bool(frames[-1].f_locals.get("failed_workers")))


def is_lost_rank(error: BaseException) -> bool:
    """Whether a collective ended because another rank is gone."""
    return isinstance(error, RuntimeError) and RANK_LOST.search(str(error)) is not None


@contextmanager
def interrupted_by_lost_processes(progress: Progress) -> Iterator[None]:
    """Within it a lost worker or rank raises Stopped, with a message; of one machine, if this start has made a step."""
    try:
        yield
    except (RuntimeError, ConnectionResetError, EOFError) as error:
        steps = bool(progress.steps_done)
        if not (steps and is_lost_worker(error)) and not ((steps or MACHINES > 1) and is_lost_rank(error)):
            raise
        text = str(error) if isinstance(error, RuntimeError) else f"DataLoader worker exited unexpectedly: {error!r}"
        cut = "; or a shard was cut short while it was read, which the next start names" * ("Bus error" in text)
        complain(text.strip().splitlines()[-1] + cut)
        raise Stopped(text if is_lost_rank(error) else "") from None
