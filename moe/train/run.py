"""A run from its config to its end: everything cheap is checked first. Under several ranks only rank 0 speaks."""

from __future__ import annotations

import atexit
import dataclasses
import os
import threading
import warnings
from contextlib import suppress
from typing import NoReturn

from moe.common.units import flush, say
from moe.config import Config, ParallelismConfig
from moe.train.distributed.ranks import LOCAL_RANK, RANK, WORLD_SIZE
from moe.train.opening import open_folder
from moe.train.start import with_precision
from moe.train.stop import Stopped, StopSignal

LONGEST_END = 60.0  # seconds that all exit handlers have


def end(code: int) -> NoReturn:
    """Ends the process with `code`, exit handlers run and output flushed, the interpreter not taken apart: with torch
    loaded that takes seconds of CPU, on a busy machine many, and a launcher that waits for a stopped rank has 30.

    A handler that hangs does not hang the run: multiprocessing's waits for ever for the lock of a queue where the
    death of a worker interrupted who held it.
    """
    last = threading.Timer(LONGEST_END, os._exit, (code,))
    last.daemon = True
    last.start()
    atexit._run_exitfuncs()
    with suppress(OSError):
        flush()
    os._exit(code)


def train(config: Config, stop: StopSignal) -> int:
    """Trains to `max_duration`, or resumes from the run folder's newest checkpoint.

    Raises:
        InputError: something a user can fix; nothing has been overwritten.
        Stopped: a signal ended the run early; everything is saved.
    """
    from moe.optim.auto import resolve
    from moe.train.inputs import check_data
    from moe.train.remote_sizes import begin_check

    inputs = check_data(config, report=say)
    wait_for_sizes = begin_check(config, inputs) if RANK == 0 else lambda: None
    say("starting ...")
    warnings.filterwarnings("ignore", message=".*(is not in the state_dict|pin_memory|No batches were trained).*")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import torch

    from moe.train.compiling import check_compiler
    from moe.train.distributed.joining import join
    from moe.train.fit import fit
    from moe.train.same_start import check_same_start
    from moe.train.temporary_folder import temporary_folder
    from moe.train.tf32 import forbid_tf32

    forbid_tf32()
    stop.install()  # once more: importing Composer has put its own handlers in their place
    on_gpu = torch.cuda.is_available()
    config = _with_sharding(with_precision(config, on_gpu))
    check_compiler(config.compile)
    if WORLD_SIZE > 1:
        stop.peers = join(config, on_gpu=on_gpu)
        check_same_start(config, inputs)
    folder, start = open_folder(config, inputs)
    continued = start.load.manifest["config"] if start.load is not None and not start.weights_only else None
    config, chosen = resolve(config, continued)
    if chosen or "auto" in folder.record:
        folder.note(auto={choice.key: choice.value for choice in chosen})

    def last_words() -> None:
        say(
            f"the step did not end within {stop.grace:.0f} s of {stop.reason}, and the launcher would kill it: "
            f"it is lost; {folder.newest()}; run the same command again to resume"
        )
        folder.close("stopped", reason=f"{stop.reason}, in a step that did not end")

    stop.last_words = last_words if RANK == 0 else None
    try:
        with temporary_folder(folder.path, folder.record["id"], stop, leader=LOCAL_RANK == 0):
            return fit(config, inputs, folder, start, stop, on_gpu, chosen, wait_for_sizes)
    except Stopped as stopped:
        stop.lost(str(stopped))
        folder.end("stopped", say, reason=stop.reason)
        say(f"stopped by {stop.reason}; {folder.newest()}; run the same command again to resume")
        raise
    except BaseException as error:  # of a start that was not recorded nothing is noted
        folder.end("failed", say, reason=f"{type(error).__name__}: {error}"[:1000])
        raise
    finally:
        folder.let_go()


def _with_sharding(config: Config) -> Config:
    from moe.train.distributed.sharding import check_torch, padded_experts

    if config.parallelism.fsdp2 and WORLD_SIZE == 1:
        say("parallelism.fsdp2: true -> false, because it needs 2 or more ranks")
        return dataclasses.replace(config, parallelism=ParallelismConfig())
    if config.parallelism.fsdp2:
        check_torch()
        shape = config.model.n_experts, config.model.d_model, config.model.expert_hidden
        if line := padded_experts(shape, WORLD_SIZE, config.parallelism.replicas):
            say(line)
    return config
