"""Where one start of the command stands: its run folder, the checkpoint it goes on from, its logs.

Rank 0 decides and the others are told: all go on alike, or all end with the same message. Heavy imports are inside:
the first messages must not wait for them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from moe.config import Config, Every, to_yaml
from moe.errors import InputError
from moe.units import say

if TYPE_CHECKING:
    from moe.data.text.kept_tokenizer import KeptTokenizer
    from moe.train.checkpoints import Checkpoint
    from moe.train.inputs import Inputs
    from moe.train.run_folder import RunFolder

T = TypeVar("T")
RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
COMPILED = "compile: each block is compiled where it is first used; the first steps take longer, up to minutes"
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", "0"))


def with_precision(config: Config, on_gpu: bool) -> Config:
    """The precision this device has, told where it is another one.

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


def open_folder(config: Config) -> RunFolder:
    """Rank 0 locks and reads the run folder; all ranks get the same answer, or the same error."""
    from moe.train.remote import RemoteRun
    from moe.train.run_folder import RunFolder, local_folder, open_run_folder

    if LOCAL_RANK == 0:
        _clean_leftovers(config)
    opened: list[RunFolder] = []

    def open_here() -> tuple[dict[str, Any], Checkpoint | None]:
        folder = open_run_folder(
            config.save_folder,
            run_name=config.run_name,
            autoresume=config.autoresume,
            resume_from=config.resume_from,
            report=say,
        )
        opened.append(folder)
        return folder.record, folder.checkpoint

    record, checkpoint = _agreed(open_here, here=RANK == 0)
    path = local_folder(config.save_folder, config.run_name)

    def fetch_here() -> None:  # on another machine of the same run
        assert checkpoint is not None
        if not checkpoint.path.exists():
            RemoteRun(config.save_folder, path, report=say).fetch(checkpoint.step)

    _agreed(fetch_here, here=checkpoint is not None and LOCAL_RANK == 0 and RANK != 0)
    return opened[0] if opened else RunFolder(path, record, checkpoint, lock=None)


def _agreed(call: Callable[[], T], *, here: bool) -> T:
    """What `call` gives on rank 0, after it was made on all ranks that are `here`.

    Raises:
        InputError: on every rank alike, where it failed on one.
    """
    from composer.utils import dist

    fault = result = None
    if here:
        try:
            result = call()
        except InputError as error:
            fault = str(error)
        except OSError as error:  # RemoteError among them
            fault = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    answers: list[Any] = dist.all_gather_object((fault, result))
    if faults := [found for found, _ in answers if found is not None]:
        raise InputError(faults[0])
    return answers[0][1]


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
    from moe.train.continuing import check_continues, check_weights_fit

    settings = dataclasses.asdict(config)
    tokenizer = meta.tokenizer.fingerprint if meta.tokenizer is not None else None
    if folder.checkpoint is not None:
        check_continues(folder.checkpoint, settings, fingerprint, say, tokenizer)
        _expect_changes(folder, folder.checkpoint, settings)
        return str(folder.checkpoint.state_file), False, folder.checkpoint.step
    if config.load_path is None:
        return None, False, 0
    try:
        named = find_named(config.load_path)
    except CheckpointError as error:
        raise InputError(f"load_path: {error}") from None
    if config.load_weights_only:
        check_weights_fit(named, settings, meta.vocab_size, tokenizer, say)
        say(f"starting from the weights of {named.path}")
        return str(named.state_file), True, 0
    check_continues(named, settings, fingerprint, say, tokenizer)
    _expect_changes(folder, named, settings)
    say(f"starting from the state of {named.path}, step {named.step:,}")
    return str(named.state_file), False, named.step


def _expect_changes(folder: RunFolder, checkpoint: Checkpoint, settings: dict[str, Any]) -> None:
    from moe.train.changes import command, earlier_changes, new_changes, versions

    manifest = checkpoint.manifest
    folder.history.expect(earlier_changes(manifest), new_changes(manifest, settings, versions()), command())


def evaluation_is_due(config: Config, folder: RunFolder, step: int, every: Every) -> bool:
    """Whether to evaluate before training: at the very start, and where the last evaluation was interrupted."""
    from moe.train.inputs import streams_of
    from moe.train.logs import evaluated_at

    if config.eval_data is None or not (every.due(step) if step else config.eval_first):
        return False
    names = streams_of(config.eval_data) or [""]
    keys = [f"metrics/eval/{name}/loss" if name else "metrics/eval/loss" for name in names]
    return _agreed(lambda: not evaluated_at(folder.path / "metrics.jsonl", step, keys), here=RANK == 0)


def open_logs(
    config: Config, folder: RunFolder, start_step: int, eval_again: bool, tokenizer: KeptTokenizer | None = None
) -> tuple[list[Any], Any]:
    """The places metrics go to (rank 0 only), and what to call with the exit code at the end."""
    from moe.data.text.kept_tokenizer import write_kept
    from moe.train.checkpoints import TOKENIZER
    from moe.train.logs import jsonl_writer, last_step, tensorboard_writer, wandb_writer

    if RANK != 0:
        return [], lambda code: None
    (folder.path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    if tokenizer is not None and tokenizer.files and not write_kept(tokenizer, folder.path / TOKENIZER):
        say(f"warning: {folder.path / TOKENIZER} holds another tokenizer than the run's and is left as it is")
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
