"""The run folder and the checkpoint that a start resumes from, verified: rank 0 looks, all ranks get the same answer.

Decisions:
- Rank 0 reads manifests and sizes; the parts of ranks that share a model are hashed by all ranks, then all agree. Where
  one of them is damaged rank 0 looks again, without it: the step before, as a single rank does.
- Nothing in the folder has changed by then: `record_start` does that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.common.errors import InputError
from moe.common.units import say
from moe.config import Config
from moe.train.distributed.ranks import LOCAL_RANK, MACHINES, RANK, WORLD_SIZE, agreed, on_each
from moe.train.start import Start, starting_point, with_what_is_due

if TYPE_CHECKING:
    from moe.train.checkpointing.checkpoints import Checkpoint, CheckpointError
    from moe.train.checkpointing.run_folder import RunFolder
    from moe.train.inputs import Inputs


@dataclass
class _Broken:
    """What this start has found not to verify: folders here, and steps on the remote."""

    here: dict[Path, CheckpointError] = field(default_factory=dict)
    there: list[int] = field(default_factory=list)

    def read(self, folder: Path) -> Checkpoint:
        """Raises CheckpointError."""
        from moe.train.checkpointing.checkpoints import read_checkpoint

        named = folder.with_name(folder.name.removeprefix(".replaced-"))
        if named in self.here:
            raise self.here[named]
        return read_checkpoint(folder, parts=WORLD_SIZE == 1)


def open_folder(config: Config, inputs: Inputs) -> tuple[RunFolder, Start]:
    """Raises InputError on every rank alike: the folder holds another run, or nothing in it verifies or fits."""
    from moe.train.checkpointing.run_folder import RunFolder, local_folder
    from moe.train.distributed.same_folder import check_same_folder

    if LOCAL_RANK == 0:
        _clean_leftovers(inputs)
    opened: list[RunFolder] = []
    broken = _Broken()

    def open_here() -> tuple[dict[str, Any], Checkpoint | None, Start, bool]:
        folder, start = _open_checked(config, inputs, opened, broken)
        return folder.record, folder.checkpoint, start, folder.found is not None and folder.found.only_remote

    path = local_folder(config.save_folder, config.run_name)
    try:
        check_same_folder(path, config.save_folder)
        while True:
            record, checkpoint, start, fetched = agreed(open_here, here=RANK == 0)
            if start.load is None or WORLD_SIZE == 1:
                break
            error = _first(on_each(partial(_verify, config, start, checkpoint, fetched), here=True))
            if error is None and checkpoint is not None and MACHINES > 1:
                agreed(lambda: opened[-1].upload(say), here=RANK == 0)  # the others fetch it
                others = LOCAL_RANK == 0 and RANK != 0
                error = _first(on_each(partial(_fetch, config, path, checkpoint, fetched), here=others))
            if error is None:
                break
            agreed(partial(_go_back, config, opened, broken, start, fetched, error), here=RANK == 0)
        return opened[-1] if opened else RunFolder(path, record, checkpoint), start
    except BaseException:
        for folder in opened:
            folder.let_go()
        raise


def _verify(config: Config, start: Start, checkpoint: Checkpoint | None, fetched: bool) -> CheckpointError | None:
    """What is damaged of this rank's share. fetched: by rank 0, and hashed as it came."""
    from moe.train.checkpointing.checkpoints import CheckpointError
    from moe.train.checkpointing.shares import verify_share

    assert start.load is not None
    far = checkpoint is not None and "://" in config.save_folder
    try:
        if not fetched:
            verify_share(start.load, everywhere=MACHINES == 1 or not far)
    except CheckpointError as error:
        return error
    return None


def _fetch(config: Config, path: Path, checkpoint: Checkpoint, fetched: bool) -> CheckpointError | None:
    """On another machine than the first, which has a sound one: what is damaged of that which this machine needs.

    Raises:
        InputError: there is no way to it.
    """
    from moe.train.checkpointing.checkpoints import CheckpointError
    from moe.train.checkpointing.remote import RemoteRun
    from moe.train.checkpointing.shares import files_fetched, standing

    if "://" in config.save_folder:
        try:
            files = files_fetched(config, checkpoint.manifest)
            RemoteRun(config.save_folder, path, report=say).fetch_copy(checkpoint, files)
        except CheckpointError as error:
            if fetched:  # the first machine has fetched other files of it
                return error
            raise
    elif not standing(checkpoint.path).is_dir():
        raise InputError(
            f"save_folder ({path}): {checkpoint.path.name} is not there on {os.uname().nodename}; give one on a "
            "filesystem that all machines share, or s3://"
        )
    return None


def _first(errors: list[CheckpointError | None]) -> CheckpointError | None:
    return next((error for error in errors if error is not None), None)


def _go_back(
    config: Config, opened: list[RunFolder], broken: _Broken, start: Start, fetched: bool, error: CheckpointError
) -> None:
    """Rank 0 leaves out what a rank has found damaged. Raises it where the user has asked for that very step."""
    assert start.load is not None
    if fetched:
        _leave_out(config, broken, start.step, error)
    else:
        broken.here[start.load.path] = error
    opened.pop().let_go()


def _leave_out(config: Config, broken: _Broken, step: int, error: CheckpointError) -> None:
    if config.resume_from is not None:
        raise error
    say(f"broken checkpoint on {config.save_folder}: {error}; set aside there, using the one before it")
    broken.there.append(step)


def _open_checked(config: Config, inputs: Inputs, opened: list[RunFolder], broken: _Broken) -> tuple[RunFolder, Start]:
    """The run folder with a checkpoint that fits, and, where it was on the remote alone, that has arrived here."""
    from moe.train.checkpointing.checkpoints import CheckpointError
    from moe.train.checkpointing.run_folder import open_run_folder
    from moe.train.checkpointing.shares import files_fetched

    while True:
        folder = open_run_folder(
            config.save_folder,
            run_name=config.run_name,
            autoresume=config.autoresume,
            resume_from=config.resume_from,
            report=say,
            read=broken.read,
            skip=broken.there,
        )
        opened.append(folder)
        start = starting_point(config, inputs, folder.checkpoint, broken.read)
        try:
            folder.fetch(say, files_fetched(config, folder.checkpoint.manifest) if folder.checkpoint else None)
        except CheckpointError as error:
            _leave_out(config, broken, start.step, error)
            opened.pop().let_go()
            continue
        return folder, with_what_is_due(config, inputs, folder, start)


def _clean_leftovers(inputs: Inputs) -> None:
    """Shared memory that a killed run left for this data; no other run's."""
    from moe.data import clean_stale_shared_memory

    specs = [*inputs.train_streams.values(), *inputs.eval_streams.values()]
    clean_stale_shared_memory([os.path.join(spec.local, spec.split) for spec in specs])
