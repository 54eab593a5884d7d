"""What a start writes into its run folder before the first step: itself, the files it needs, its logs.

After the last check, since what is refused changes nothing. Rank 0 writes; all ranks continue, or all end with the same
message.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from moe.common.errors import InputError
from moe.common.paths import refuse_irregular
from moe.common.units import say
from moe.config import Config, to_yaml
from moe.data.read.text_known import write_commit, write_known
from moe.data.text.kept_tokenizer import write_kept
from moe.optim.rates import rate_change
from moe.train.callbacks.user import UserCallbacks
from moe.train.callbacks.user_classes import UserClass
from moe.train.checkpointing.changes import command, earlier_changes, new_changes, versions
from moe.train.checkpointing.checkpoints import TOKENIZER
from moe.train.checkpointing.run_folder import RunFolder
from moe.train.distributed.ranks import RANK, WORLD_SIZE, agreed
from moe.train.inputs import Inputs
from moe.train.logs import Writer, jsonl_writer, last_step, tensorboard_writer, wandb_writer
from moe.train.start import Start


def record_start(
    config: Config, folder: RunFolder, start: Start, inputs: Inputs, users: UserCallbacks
) -> tuple[list[Writer], Callable[[int], None]]:
    """The start is recorded, with what it changes in its run. Gives the writers of its rows (on rank 0 alone), and what
    to call with the exit code at the end.

    Raises:
        InputError: on every rank: W&B does not start, the folder is another process's, or cannot be written.
    """
    _expect_changes(config, folder, start, users)
    opened: list[tuple[list[Writer], Callable[[int], None]]] = []

    def open_here() -> None:
        try:
            opened.append(_open_logs(config, folder, start, inputs, users))
        except OSError as error:
            raise InputError(
                f"save_folder ({folder.path}): {error.filename} cannot be written: {error.strerror}"
            ) from None

    agreed(open_here, here=RANK == 0)
    return opened[0] if opened else ([], _nothing)


def _open_logs(
    config: Config, folder: RunFolder, start: Start, inputs: Inputs, users: UserCallbacks
) -> tuple[list[Writer], Callable[[int], None]]:
    finish: Callable[[int], None] = _nothing
    written: list[Writer] = []
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
        _write_sources(users.classes, folder.path)
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


def _nothing(code: int) -> None:
    pass


def _expect_changes(config: Config, folder: RunFolder, start: Start, users: UserCallbacks) -> None:
    """Notes what this start changes in its run, for events.jsonl and for each manifest from here on."""
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


def _write_sources(found: Sequence[UserClass], folder: Path) -> None:
    """Puts the sources into a run folder, those that are not there yet. Raises OSError."""
    for one in found:
        path = folder / one.file
        if path.exists():
            refuse_irregular(path)
        if one.source is not None and not (path.exists() and path.read_bytes() == one.source):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(one.source)
