"""Run items as tasks of a Ray cluster: the one RAY_ADDRESS names, else one started on this machine for the
time of the run.

- Ray runs a task again when its process or machine dies; a unit appears complete or not at all, so that does no harm.
- At most `workers` tasks run at a time, of one CPU each; without it as many as the cluster has CPUs.
- Errors of files come back as values, as they do from a local worker.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from moe.common.errors import InputError
from moe.common.extras import install_command
from moe.data.folders import Folder
from moe.data.text.encoders import settle_process
from moe.data.text.errors import BadFileError
from moe.data.text.tokenizer import spare_torch
from moe.data.write.items import Item, convert_item
from moe.data.write.pool import ASK_AGAIN_S, add
from moe.data.write.unit import Job

END = object()
OBJECT_STORE_BYTES = 80 << 20  # about the least that Ray takes; only the job goes through it


def _run(job: Job, item: Item, folder: Folder) -> tuple[list[int], list[BadFileError] | InputError]:
    """The task: tokens, weight and documents made, and its files' errors, or the one that ended it."""
    spare_torch()
    settle_process()
    made = [0, 0, 0]

    def report(*more: int) -> None:
        made[:] = [a + b for a, b in zip(made, more, strict=True)]

    try:
        return made, convert_item(job, item, folder, report)
    except InputError as error:
        return made, error


def _connect(ray: Any, workers: int | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "WARNING"}
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        address = "local"
        settings |= {
            "num_cpus": workers or len(os.sched_getaffinity(0)),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    handler = signal.getsignal(signal.SIGTERM)
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--engine ray: RAY_ADDRESS {address} cannot be reached ({error}); start the cluster or correct the address"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end this process without a message


def run_units(
    job: Job,
    items: Iterable[Item | None],
    folder: Folder,
    *,
    workers: int | None,
    counter: Any,
    finished: Callable[[Item, list[BadFileError]], bool],
) -> None:
    """As moe.data.write.pool.run_units."""
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise InputError(f"--engine ray: {error}; {install_command('ray')}") from error
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, workers)
    try:
        task, sent = ray.remote(num_cpus=1)(_run), ray.put(job)
        limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        todo = iter(items)
        running: dict[Any, Item] = {}
        going, planned = True, False
        while going:
            while not planned and len(running) < limit:
                item: Any = next(todo, END)
                planned = item is END
                if planned or item is None:
                    break
                running[task.remote(sent, item, folder)] = item
            if not running:
                if planned:
                    break
                time.sleep(ASK_AGAIN_S)
                continue
            for done in ray.wait(list(running), timeout=None if planned else ASK_AGAIN_S)[0]:
                made, errors = ray.get(done)
                add(counter, *made)
                if isinstance(errors, InputError):
                    raise errors
                going = finished(running.pop(done), errors) and going
        for rest in running:
            ray.cancel(rest, force=True)
    except RayTaskError:
        raise
    except RayError as error:
        raise InputError(
            f"a Ray worker was lost ({type(error).__name__}); what is done is kept: run the same command again"
        ) from error
    finally:
        if ours:
            ray.shutdown()
