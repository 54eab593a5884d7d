"""Where one start of the command stands: the step it begins at, what is due there, its logs.

Rank 0 decides and sends it to the others: all continue alike, or all end with the same message. Heavy imports are
inside: the first messages must not wait for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.common.errors import InputError
from moe.common.units import say
from moe.config import Config, to_yaml
from moe.train.distributed.ranks import RANK, WORLD_SIZE, agreed

if TYPE_CHECKING:
    from moe.train.callbacks.user import UserCallbacks
    from moe.train.checkpointing.checkpoints import Checkpoint
    from moe.train.checkpointing.run_folder import RunFolder
    from moe.train.inputs import Inputs


def with_precision(config: Config, on_gpu: bool) -> Config:
    """The precision this device has, with a line where it is another one.

    Raises:
        InputError: there is none that stands for it.
    """
    import torch

    if config.precision == "amp_fp16" and not on_gpu:
        raise InputError("precision (amp_fp16) needs a GPU and there is none; use fp32 or amp_bf16")
    if config.precision == "amp_bf16" and not (on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)):
        say(f"precision: amp_bf16 -> fp32, because the {'GPU' if on_gpu else 'CPU'} has no fast bf16")
        return dataclasses.replace(config, precision="fp32")
    return config


@dataclasses.dataclass(frozen=True)
class Start:
    """What to load: this run's checkpoint, else `load_path`'s, else nothing; and the step the run then stands at."""

    load: Checkpoint | None
    weights_only: bool
    step: int
    eval_first: bool = False  # at the very start, and where the last evaluation was interrupted
    score_first: bool = False  # tasks, where their last scoring was interrupted


def starting_point(
    config: Config, inputs: Inputs, checkpoint: Checkpoint | None, read: Callable[[Path], Checkpoint]
) -> Start:
    """Where a start begins that has found `checkpoint` in its run folder. read: verifies what `load_path` names.

    Raises:
        InputError: that, or `load_path`, does not fit the config.
    """
    from moe.optim.auto import resolve
    from moe.optim.rates import rate_change
    from moe.train.checkpointing.checkpoints import CheckpointError, find_named
    from moe.train.checkpointing.compatibility import check_continues, check_weights_fit

    def settings_for(continued: Checkpoint | None) -> dict[str, Any]:
        return dataclasses.asdict(resolve(config, kept=continued.manifest["config"] if continued else None)[0])

    settings = settings_for(checkpoint)
    tokenizer = inputs.kept_tokenizer.fingerprint if inputs.kept_tokenizer is not None else None
    if checkpoint is not None:
        check_continues(checkpoint, settings, inputs.fingerprint, say, tokenizer, former=inputs.former)
        if moved := rate_change(checkpoint.manifest["config"], settings, checkpoint.step):
            say(moved)
        return Start(checkpoint, False, checkpoint.step)
    if config.load_path is None:
        return Start(None, False, 0)
    try:
        named = find_named(config.load_path, read)
    except CheckpointError as error:
        raise InputError(f"load_path: {error}") from None
    if config.load_weights_only:
        check_weights_fit(named, settings, inputs.vocab_size, tokenizer, say)
        say(f"starting from the weights of {named.path}")
        return Start(named, True, 0)
    check_continues(named, settings_for(named), inputs.fingerprint, say, tokenizer, former=inputs.former)
    say(f"starting from the state of {named.path}, step {named.step:,}")
    return Start(named, False, named.step)


def with_what_is_due(config: Config, inputs: Inputs, folder: RunFolder, start: Start) -> Start:
    """Whether to evaluate and to score before training.

    Raises:
        InputError: the run's metrics cannot be read.
    """
    from moe.common.task_metrics import SECONDS
    from moe.config.steps import Steps
    from moe.train.logs import evaluated_at, logged_at

    step, steps = start.step, Steps.of(config)
    eval_first = score_first = False
    if config.eval_data is not None and (steps.every(config.eval_interval).due(step) if step else config.eval_first):
        names = inputs.eval_streams or [""]
        keys = [f"metrics/eval/{name}/loss" if name else "metrics/eval/loss" for name in names]
        # callbacks of the user's are loaded as they were before the evaluation of that step: they must see it again
        again = bool(config.callbacks) and step < steps.total
        eval_first = again or not evaluated_at(folder.metrics(), step, keys)
    if config.eval_tasks is not None and step and steps.every(config.eval_tasks.interval).due(step):
        score_first = not logged_at(folder.metrics(), step, SECONDS)
    return dataclasses.replace(start, eval_first=eval_first, score_first=score_first)


def record_start(
    config: Config, folder: RunFolder, start: Start, inputs: Inputs, users: UserCallbacks
) -> tuple[list[Any], Any]:
    """The start is recorded, with what it changes in its run: after the last check, since what is refused changes
    nothing. Gives the loggers (on rank 0 alone), and what to call with the exit code at the end.

    Raises:
        InputError: on every rank: W&B does not start, the folder is another process's, or cannot be written.
    """
    _expect_changes(config, folder, start, users)
    opened: list[tuple[list[Any], Any]] = []

    def open_here() -> None:
        try:
            opened.append(_open_logs(config, folder, start, inputs, users))
        except OSError as error:
            raise InputError(
                f"save_folder ({folder.path}): {error.filename} cannot be written: {error.strerror}"
            ) from None

    agreed(open_here, here=RANK == 0)
    return opened[0] if opened else ([], lambda code: None)


def _open_logs(
    config: Config, folder: RunFolder, start: Start, inputs: Inputs, users: UserCallbacks
) -> tuple[list[Any], Any]:
    from moe.data.read.text_known import write_commit, write_known
    from moe.data.text.kept_tokenizer import write_kept
    from moe.train.callbacks.user_classes import write_sources
    from moe.train.checkpointing.checkpoints import TOKENIZER
    from moe.train.logs import jsonl_writer, last_step, tensorboard_writer, wandb_writer

    finish: Any = lambda code: None  # noqa: E731
    written = []
    if config.loggers.wandb is not None:  # first: it may refuse
        folder.take(say)
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
        written.append(write)
    try:
        folder.begin(say)
        (folder.path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        tokenizer = inputs.kept_tokenizer
        if tokenizer is not None and tokenizer.files and not write_kept(tokenizer, folder.path / TOKENIZER):
            say(f"warning: {folder.path / TOKENIZER} holds another tokenizer than the run's and is left as it is")
        write_sources(users.classes, folder.path)
        if users.sources or "callbacks" in folder.record:
            folder.note(callbacks=users.sources)
        if inputs.text is not None:
            write_known(folder.path, inputs.text.files)
            write_commit(folder.path, inputs.text.asked, inputs.text.commit)
        metrics = folder.path / "metrics.jsonl"
        reached = last_step(metrics)
        writers = [jsonl_writer(metrics, start.step if folder.checkpoint else 0, start.eval_first)]
        if config.loggers.tensorboard is not None:
            writers.append(tensorboard_writer(folder.path / "tensorboard", start.step))
        folder.history.begin(start.step, resumed=folder.checkpoint is not None, reached=reached, ranks=WORLD_SIZE)
    except BaseException:
        finish(1)
        raise
    return writers + written, finish


def _expect_changes(config: Config, folder: RunFolder, start: Start, users: UserCallbacks) -> None:
    """Notes what this start changes in its run, for events.jsonl and for each manifest from here on."""
    from moe.optim.rates import rate_change
    from moe.train.checkpointing.changes import command, earlier_changes, new_changes, versions

    if start.load is None or start.weights_only:
        return
    manifest, settings = start.load.manifest, dataclasses.asdict(config)
    changes = new_changes(manifest, settings, versions(), users.sources)
    for change in [change for change in changes if change["key"].startswith("callbacks.")]:
        say(f"changed since the checkpoint: the source of {change['key'].partition('.')[2]} (sha256 {change['now']})")
    folder.history.expect(
        earlier_changes(manifest),
        changes,
        command=command(),
        rate=rate_change(manifest["config"], settings, manifest["step"]),
    )
