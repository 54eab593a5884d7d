"""The run from command line to exit code: check everything cheap first, then build, resume, train.

Exit codes: 0 done (also: already complete), 1 failed, 2 input a user can mend, 75 stopped early (run the same command
again), 130 second Ctrl+C. Under several ranks only rank 0 speaks.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.config import Config, ConfigError, Every, load_config, parse_time, to_yaml
from moe.config.checks import check_ranks
from moe.errors import InputError, RunFailed
from moe.train.stop import EXIT_STOPPED, Stopped, StopSignal
from moe.units import say

if TYPE_CHECKING:
    from moe.data.meta import Meta
    from moe.train.run_folder import RunFolder

USAGE = (
    "usage: composer train.py CONFIG.yaml [key=value ...]      e.g. composer train.py yamls/500m.yaml optimizer.lr=5e-4"
)
PACKAGES = ("torch", "mosaicml", "mosaicml-streaming", "transformers", "numpy")
DIST_TIMEOUT = 1800.0  # seconds; rank 0 may hash large checkpoints while the others wait
RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def main(argv: list[str]) -> int:
    """Runs `train.py`'s command line; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    stop = StopSignal()
    stop.install()
    try:
        config = load_config(argv[0], argv[1:])
        if faults := check_ranks(config, WORLD_SIZE):
            raise ConfigError(argv[0], faults)
        return train(config, stop)
    except (InputError, RunFailed) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"\nerror: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, InputError) else 1
    except Stopped:
        return EXIT_STOPPED


def train(config: Config, stop: StopSignal) -> int:
    """Trains to `max_duration`, or goes on from the run folder's newest checkpoint.

    Raises:
        InputError: something a user can mend; nothing has been overwritten.
        Stopped: a signal ended the run early; everything is saved.
    """
    from moe.train.inputs import check_data

    meta = check_data(config, report=say)
    say("starting ...")
    warnings.filterwarnings("ignore", message=".*(is not in the state_dict|pin_memory|No batches were trained).*")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import torch
    from composer.utils import dist, get_device

    stop.install()  # once more: importing Composer has put its own handlers in their place
    on_gpu = torch.cuda.is_available()
    config = _with_precision(config, on_gpu)
    if WORLD_SIZE > 1:
        dist.initialize_dist(get_device("gpu" if on_gpu else "cpu"), timeout=DIST_TIMEOUT)
    folder = _open_folder(config)
    try:
        return _fit(config, meta, folder, stop, on_gpu)
    except Stopped:
        folder.note(state="stopped")
        say(f"stopped, saved in {folder.path}; run the same command again to go on")
        raise
    except InputError:
        raise
    except BaseException:
        folder.note(state="failed")
        raise
    finally:
        if folder.lock is not None:
            folder.lock.close()


def _with_precision(config: Config, on_gpu: bool) -> Config:
    import torch

    if config.precision == "amp_fp16" and not on_gpu:
        raise InputError("precision (amp_fp16) needs a GPU and there is none; use fp32 or amp_bf16")
    if config.precision == "amp_bf16" and not (on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)):
        say(f"precision: amp_bf16 -> fp32, because the {'GPU' if on_gpu else 'CPU'} has no fast bf16")
        return dataclasses.replace(config, precision="fp32")
    return config


def _open_folder(config: Config) -> RunFolder:
    """Rank 0 locks and reads the run folder; all ranks get the same answer, or the same error."""
    from composer.utils import dist

    from moe.train.run_folder import RunFolder, open_run_folder

    if os.environ.get("LOCAL_RANK", "0") == "0":
        _clean_leftovers(config)
    answer: list[Any] = [None, None]
    lock = None
    if RANK == 0:
        try:
            opened = open_run_folder(
                Path(config.save_folder),
                run_name=config.run_name,
                autoresume=config.autoresume,
                resume_from=config.resume_from,
                report=say,
            )
            lock = opened.lock
            answer = [None, (opened.record, opened.checkpoint)]
        except InputError as error:
            answer = [str(error), None]
    dist.broadcast_object_list(answer)
    if answer[0] is not None:
        raise InputError(answer[0])
    record, checkpoint = answer[1]
    return RunFolder(Path(config.save_folder).expanduser(), record, checkpoint, lock)


def _clean_leftovers(config: Config) -> None:
    """Shared memory that a killed run left behind for this data; no other run's."""
    from moe.data import clean_stale_shared_memory

    sources = [data for data in (config.train_data, config.eval_data) if data is not None]
    clean_stale_shared_memory([os.path.join(data.local, data.split) for data in sources])


def _fit(config: Config, meta: Meta, folder: RunFolder, stop: StopSignal, on_gpu: bool) -> int:
    from composer import Trainer
    from composer.callbacks import SpeedMonitor

    from moe import build
    from moe.train.callbacks.console import Console
    from moe.train.callbacks.gradients import GradientClipping
    from moe.train.callbacks.learning_rate import LearningRate
    from moe.train.callbacks.losses import StepLosses
    from moe.train.callbacks.saver import CheckpointSaver
    from moe.train.callbacks.seeding import StepSeed
    from moe.train.inputs import print_plan
    from moe.train.loading import mend_composer
    from moe.train.logs import RunLog

    tokens_per_step = config.global_train_batch_size * config.max_seq_len
    total_steps = parse_time(config.max_duration).to_steps(tokens_per_step)

    def every(interval: str) -> Every:
        return Every(parse_time(interval), tokens_per_step, total_steps)

    fingerprint = build.data_fingerprint(config.train_data.local)
    load_path, weights_only, start_step = _starting_point(config, meta, folder, fingerprint)
    microbatch = build.microbatch_size(config, WORLD_SIZE, on_gpu)
    count = build.count_parameters(**build.model_shape(config.model, meta.vocab_size))
    print_plan(config, meta, folder, count=count, microbatch=microbatch, world_size=WORLD_SIZE, say=say)
    eval_first = _evaluation_is_due(config, folder, start_step, every(config.eval_interval))
    if start_step >= total_steps and not eval_first:
        folder.note(state="done")
        say(f"complete: step {start_step:,} of {total_steps:,} is saved in {folder.path}; nothing left to do")
        return 0

    model = build.build_model(config, meta)
    optimizer, groups = build.build_optimizer(config, model)
    try:
        writers, finish_logs = _open_logs(config, folder, start_step)
    except OSError as error:
        raise InputError(f"save_folder ({folder.path}): {error.filename} cannot be written: {error.strerror}") from None
    log = every(config.log_interval)
    callbacks = [
        StepSeed(config.seed),
        LearningRate(
            build.build_schedule(config),
            total=parse_time(config.max_duration),
            tokens_per_step=tokens_per_step,
            groups=groups,
        ),
        StepLosses(model, tokens_per_step=tokens_per_step, log=log),
        GradientClipping(config.gradient_clip_norm, config.max_skipped_steps),
        SpeedMonitor(window_size=10),
        CheckpointSaver(
            folder.path,
            every=every(config.save_interval),
            keep=config.save_num_checkpoints_to_keep,
            keep_every=parse_time(config.keep_every) if config.keep_every else None,
            stop=stop,
            report=say,
            manifest={
                "config": dataclasses.asdict(config),
                "data": fingerprint,
                "eos_id": meta.eos_id,
                "vocab_size": meta.vocab_size,
                "versions": _versions(),
            },
        ),
    ]
    evaluators = []
    if config.eval_data is not None:
        evaluators = [
            build.build_evaluator(config, meta, rank=RANK, world_size=WORLD_SIZE, every=every(config.eval_interval))
        ]
    mend_composer()
    code, trainer = 1, None
    try:
        trainer = Trainer(
            model=model,
            optimizers=optimizer,
            train_dataloader=build.build_train_spec(config, meta, WORLD_SIZE),
            eval_dataloader=evaluators,
            max_duration=str(parse_time(config.max_duration)),
            device="gpu" if on_gpu else "cpu",
            precision=config.precision,
            device_train_microbatch_size=microbatch,
            run_name=config.run_name,
            seed=config.seed,
            callbacks=callbacks,
            loggers=[RunLog(writers, log), *([Console(log)] if RANK == 0 else [])],
            load_path=load_path,
            load_weights_only=weights_only,
            load_progress_bar=False,
            progress_bar=False,
        )
        if eval_first:
            trainer.eval()
        if start_step < total_steps:
            trainer.fit()
        code = 0
    except Stopped:
        code = 0  # for W&B: an interruption is no failure
        raise
    finally:
        if trainer is not None:
            trainer.engine.close()  # not trainer.close(), which waits for all ranks: one of them may have failed alone
        finish_logs(code)
    folder.note(state="done")
    say(f"done: {total_steps:,} steps; checkpoint and logs are in {folder.path}")
    return 0


def _starting_point(config: Config, meta: Meta, folder: RunFolder, fingerprint: str) -> tuple[str | None, bool, int]:
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


def _evaluation_is_due(config: Config, folder: RunFolder, step: int, every: Every) -> bool:
    """Whether to evaluate before training: at the very start, and where the last evaluation was interrupted."""
    from composer.utils import dist

    from moe.train.logs import evaluated_at

    if config.eval_data is None or not (every.due(step) if step else config.eval_first):
        return False
    answer = [not evaluated_at(folder.path / "metrics.jsonl", step) if RANK == 0 else None]
    dist.broadcast_object_list(answer)
    return bool(answer[0])


def _open_logs(config: Config, folder: RunFolder, start_step: int) -> tuple[list[Any], Any]:
    """The places metrics go to (rank 0 only), and what to call with the exit code at the end."""
    from moe.train.logs import jsonl_writer, tensorboard_writer, wandb_writer

    if RANK != 0:
        return [], lambda code: None
    (folder.path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    writers = [jsonl_writer(folder.path / "metrics.jsonl", start_step if folder.checkpoint else 0)]
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
    return writers, finish


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}
