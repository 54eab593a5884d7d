"""Where one start of the command stands: its run folder, the checkpoint it goes on from, its logs.

Rank 0 decides and the others are told: all go on alike, or all end with the same message. Heavy imports are inside:
the first messages must not wait for them.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from moe.config import Config, Every, to_yaml
from moe.errors import InputError
from moe.units import say

if TYPE_CHECKING:
    from moe.train.inputs import Inputs
    from moe.train.run_folder import RunFolder

RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", "0"))


def open_folder(config: Config) -> RunFolder:
    """Rank 0 locks and reads the run folder; all ranks get the same answer, or the same error."""
    from composer.utils import dist

    from moe.train.remote import RemoteRun
    from moe.train.run_folder import RunFolder, local_folder, open_run_folder

    if LOCAL_RANK == 0:
        _clean_leftovers(config)
    answer: list[Any] = [None, None]
    lock = remote = None
    if RANK == 0:
        try:
            opened = open_run_folder(
                config.save_folder,
                run_name=config.run_name,
                autoresume=config.autoresume,
                resume_from=config.resume_from,
                report=say,
            )
            lock, remote = opened.lock, opened.remote
            answer = [None, (opened.record, opened.checkpoint)]
        except InputError as error:
            answer = [str(error), None]
    dist.broadcast_object_list(answer)
    if answer[0] is not None:
        raise InputError(answer[0])
    record, checkpoint = answer[1]
    path = local_folder(config.save_folder, config.run_name)
    if checkpoint is not None and LOCAL_RANK == 0 and RANK != 0 and not checkpoint.path.exists():
        RemoteRun(config.save_folder, path, report=say).fetch(checkpoint.step)  # another machine of the same run
    dist.barrier()
    return RunFolder(path, record, checkpoint, lock, remote)


def _clean_leftovers(config: Config) -> None:
    """Shared memory that a killed run left behind for this data; no other run's."""
    from moe.data import clean_stale_shared_memory
    from moe.train.inputs import streams_of

    specs = [*streams_of(config.train_data).values(), *streams_of(config.eval_data).values()]
    clean_stale_shared_memory([os.path.join(spec.local, spec.split) for spec in specs])


def starting_point(config: Config, meta: Inputs, folder: RunFolder, fingerprint: str) -> tuple[str | None, bool, int]:
    """Which file to load, whether only its weights, and at which step the run then stands: this run's checkpoint, else
    `load_path`, else nothing.
    """
    from moe.train.checkpoints import CheckpointError, find_named
    from moe.train.run_folder import check_continues, check_weights_fit

    settings = dataclasses.asdict(config)
    if folder.checkpoint is not None:
        check_continues(folder.checkpoint, settings, fingerprint, report=say)
        return str(folder.checkpoint.state_file), False, folder.checkpoint.step
    if config.load_path is None:
        return None, False, 0
    try:
        named = find_named(config.load_path)
    except CheckpointError as error:
        raise InputError(f"load_path: {error}") from None
    if config.load_weights_only:
        check_weights_fit(named, settings, meta.vocab_size)
        say(f"starting from the weights of {named.path}")
        return str(named.state_file), True, 0
    check_continues(named, settings, fingerprint, report=say)
    say(f"starting from the state of {named.path}, step {named.step:,}")
    return str(named.state_file), False, named.step


def evaluation_is_due(config: Config, folder: RunFolder, step: int, every: Every) -> bool:
    """Whether to evaluate before training: at the very start, and where the last evaluation was interrupted."""
    from composer.utils import dist

    from moe.train.inputs import streams_of
    from moe.train.logs import evaluated_at

    if config.eval_data is None or not (every.due(step) if step else config.eval_first):
        return False
    names = streams_of(config.eval_data) or [""]
    keys = [f"metrics/eval/{name}/loss" if name else "metrics/eval/loss" for name in names]
    answer = [not evaluated_at(folder.path / "metrics.jsonl", step, keys) if RANK == 0 else None]
    dist.broadcast_object_list(answer)
    return bool(answer[0])


def open_logs(config: Config, folder: RunFolder, start_step: int, eval_again: bool) -> tuple[list[Any], Any]:
    """The places metrics go to (rank 0 only), and what to call with the exit code at the end."""
    from moe.train.logs import jsonl_writer, last_step, tensorboard_writer, wandb_writer

    if RANK != 0:
        return [], lambda code: None
    (folder.path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    metrics = folder.path / "metrics.jsonl"
    reached = last_step(metrics)
    writers = [jsonl_writer(metrics, start_step if folder.checkpoint else 0, eval_again)]
    finish: Any = lambda code: None  # noqa: E731
    if config.loggers.tensorboard is not None:
        writers.append(tensorboard_writer(folder.path / "tensorboard", start_step))
    if config.loggers.wandb is not None:
        settings = config.loggers.wandb
        folder.note(wandb_id=folder.record.get("wandb_id") or f"{config.run_name}-{folder.record['id']}")
        write, finish = wandb_writer(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            tags=list(settings.tags),
            run_id=folder.record["wandb_id"],
            name=config.run_name,
            folder=folder.path,
            config=dataclasses.asdict(config),
        )
        writers.append(write)
    folder.history.begin(start_step, resumed=folder.checkpoint is not None, reached=reached, ranks=WORLD_SIZE)
    return writers, finish
