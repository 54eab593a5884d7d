"""The run from command line to exit code: check everything cheap first, then build, resume, train.

Exit codes: 0 done (also: already complete), 1 failed, 2 input a user can mend, 75 stopped early (run the same command
again), 130 second Ctrl+C. Under several ranks only rank 0 speaks.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import warnings
from typing import TYPE_CHECKING

from moe.config import Config, ConfigError, Every, ParallelismConfig, load_config, parse_seconds, parse_time
from moe.config.checks import check_ranks
from moe.errors import InputError, RunFailed
from moe.train.start import (
    COMPILED,
    LOCAL_RANK,
    RANK,
    WORLD_SIZE,
    evaluation_is_due,
    open_folder,
    open_logs,
    starting_point,
    with_precision,
)
from moe.train.stop import EXIT_STOPPED, LAST_RESORT, Stopped, StopSignal
from moe.units import complain, say

if TYPE_CHECKING:
    from moe.train.inputs import Inputs
    from moe.train.run_folder import RunFolder

USAGE = (
    "usage: composer train.py CONFIG.yaml [key=value ...]      e.g. composer train.py yamls/500m.yaml optimizer.lr=5e-4"
)
PACKAGES = ("torch", "mosaicml", "mosaicml-streaming", "transformers", "numpy")
LOST = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)|gloo.*by peer|NCCL.*remote process")
DIST_TIMEOUT = 1800.0  # seconds; rank 0 may hash large checkpoints while the others wait


def main(argv: list[str]) -> int:
    """Runs `train.py`'s command line; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    # Python's tracker of shared memory clears what a second Ctrl+C leaves; that it does is no news
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    stop = StopSignal()
    stop.install()
    say(f"moe: reading {argv[0]} ...")  # before all that takes time
    try:
        config = load_config(argv[0], argv[1:])
        if faults := check_ranks(config, WORLD_SIZE):
            raise ConfigError(argv[0], faults)
        if config.check:
            from moe.checks.page import show_checks

            return show_checks(lambda: config, argv[0])
        stop.time_limit = parse_seconds(config.time_limit) if config.time_limit else None
        return train(config, stop)
    except (InputError, RunFailed) as error:
        if LOCAL_RANK == 0:
            complain(str(error))
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

    from moe.build import check_compiler
    from moe.train.temporary import temporary_folder

    stop.install()  # once more: importing Composer has put its own handlers in their place
    on_gpu = torch.cuda.is_available()
    config = _with_sharding(with_precision(config, on_gpu))
    check_compiler(config.compile)
    if WORLD_SIZE > 1:
        dist.initialize_dist(get_device("gpu" if on_gpu else "cpu"), timeout=DIST_TIMEOUT)
    folder = open_folder(config)

    def last_words() -> None:
        say(
            f"the step did not end within {LAST_RESORT:.0f} s of {stop.reason}, and the launcher would kill it: "
            f"it is lost; {folder.newest()}; run the same command again to go on"
        )
        folder.close("stopped", reason=f"{stop.reason}, in a step that did not end")

    stop.last_words = last_words if RANK == 0 else None
    try:
        with temporary_folder(folder.path, folder.record["id"], stop, leader=LOCAL_RANK == 0):
            return _fit(config, meta, folder, stop, on_gpu)
    except Stopped:
        folder.end("stopped", say, reason=stop.reason)
        say(f"stopped by {stop.reason}; {folder.newest()}; run the same command again to go on")
        raise
    except InputError:
        raise
    except BaseException as error:
        folder.end("failed", say, reason=f"{type(error).__name__}: {error}"[:1000])
        raise
    finally:
        if folder.lock is not None:
            folder.lock.close()


def _with_sharding(config: Config) -> Config:
    from moe.train.sharding import check_torch

    if config.parallelism.fsdp2 and WORLD_SIZE == 1:
        say("parallelism.fsdp2: true -> false, because one rank has nobody to share with")
        return dataclasses.replace(config, parallelism=ParallelismConfig())
    if config.parallelism.fsdp2:
        check_torch()
    return config


def _fit(config: Config, meta: Inputs, folder: RunFolder, stop: StopSignal, on_gpu: bool) -> int:
    from composer import Trainer

    from moe import build
    from moe.data.text.tokenizer import load_tokenizer
    from moe.train.callbacks.alarms import Alarms
    from moe.train.callbacks.console import Console
    from moe.train.callbacks.events import Events
    from moe.train.callbacks.gradients import GradientClipping
    from moe.train.callbacks.learning_rate import LearningRate
    from moe.train.callbacks.losses import StepLosses
    from moe.train.callbacks.progress import Progress
    from moe.train.callbacks.samples import Samples
    from moe.train.callbacks.saver import CheckpointSaver
    from moe.train.callbacks.seeding import StepSeed
    from moe.train.callbacks.throughput import Throughput
    from moe.train.callbacks.weights import WeightNorms
    from moe.train.inputs import print_plan
    from moe.train.loading import mend_composer
    from moe.train.logs import RunLog
    from moe.train.microbatch import automatic_microbatch
    from moe.train.sharding import shard_transformer

    tokens_per_step = config.global_train_batch_size * config.max_seq_len
    total_steps = parse_time(config.max_duration).to_steps(tokens_per_step)

    def every(interval: str) -> Every:
        return Every(parse_time(interval), tokens_per_step, total_steps)

    load_path, weights_only, start_step = starting_point(config, meta, folder, meta.fingerprint)
    microbatch = build.microbatch_size(config, WORLD_SIZE, on_gpu)
    count = build.count_parameters(**build.model_shape(config.model, meta.vocab_size))
    print_plan(config, meta, folder, count=count, microbatch=microbatch, world_size=WORLD_SIZE, say=say)
    eval_first = evaluation_is_due(config, folder, start_step, every(config.eval_interval))
    if start_step >= total_steps and not eval_first:
        folder.end("done", say)
        say(f"complete: step {start_step:,} of {total_steps:,} is saved in {folder.path}; nothing left to do")
        return 0

    model = build.build_model(config, meta)
    if model.transformer.compiled:
        say(COMPILED)
    if config.parallelism.fsdp2:
        shard_transformer(model.transformer, world_size=WORLD_SIZE, on_gpu=on_gpu)
    optimizer, groups = build.build_optimizer(config, model)
    if not isinstance(microbatch, int):
        microbatch = automatic_microbatch(config, folder, model, optimizer, world_size=WORLD_SIZE, report=say)
    try:
        writers, finish_logs = open_logs(config, folder, start_step, eval_first)
    except OSError as error:
        raise InputError(f"save_folder ({folder.path}): {error.filename} cannot be written: {error.strerror}") from None
    log = every(config.log_interval)
    progress = Progress(
        parse_seconds(config.stall_timeout),
        stacks=folder.path / "stacks",
        rank=RANK,
        note=lambda state: folder.close(state, reason="stall_timeout"),
        end=stop.leave,
    )
    callbacks = [
        Throughput(flops_per_token=model.flops_per_token, log=log),
        progress,
        StepSeed(config.seed),
        LearningRate(
            build.build_schedule(config),
            total=parse_time(config.max_duration),
            tokens_per_step=tokens_per_step,
            groups=groups,
        ),
        StepLosses(model, tokens_per_step=tokens_per_step, log=log),
        GradientClipping(config.gradient_clip_norm, config.max_skipped_steps),
        WeightNorms(model.transformer, log),
        CheckpointSaver(
            folder.path,
            every=every(config.save_interval),
            keep=config.save_num_checkpoints_to_keep,
            keep_every=parse_time(config.keep_every) if config.keep_every else None,
            max_failed=config.max_failed_saves,
            stop=stop,
            report=say,
            event=folder.history.event,
            remote=folder.remote,
            manifest={
                "config": dataclasses.asdict(config),
                "data": meta.fingerprint,
                "eos_id": meta.eos_id,
                "vocab_size": meta.vocab_size,
                "versions": _versions(),
            },
        ),
    ]
    evaluators = build.build_evaluators(
        config,
        meta,
        rank=RANK,
        world_size=WORLD_SIZE,
        every=every(config.eval_interval),
        microbatch=microbatch,
        text=meta.text,
    )
    if evaluators and config.sample_prompts:
        tokenizer = load_tokenizer(config.tokenizer)
        callbacks.append(Samples(model.transformer, tokenizer, list(config.sample_prompts)))
    told = []
    if RANK == 0:
        alarms = Alarms(
            folder.path,
            log,
            stop=stop,
            run_name=config.run_name,
            command=config.alert_command,
            use_wandb=config.loggers.wandb is not None,
            report=say,
        )
        told = [Events(folder.history), Console(log), alarms]
    mend_composer()
    code, trainer = 1, None
    progress.watch()
    try:
        trainer = Trainer(
            model=model,
            optimizers=optimizer,
            train_dataloader=build.build_train_spec(config, meta, WORLD_SIZE, meta.text),
            eval_dataloader=evaluators,
            max_duration=str(parse_time(config.max_duration)),
            device="gpu" if on_gpu else "cpu",
            precision=config.precision,
            device_train_microbatch_size=microbatch,
            run_name=config.run_name,
            seed=config.seed,
            callbacks=callbacks,
            loggers=[RunLog(writers, log), *told],
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
    except (RuntimeError, ConnectionResetError, EOFError) as error:
        # a loader worker or another rank was killed; before the first step it may be a fault that comes again
        text = str(error) if isinstance(error, RuntimeError) else f"DataLoader worker exited unexpectedly: {error!r}"
        if not (progress.steps_done and LOST.search(text)):
            raise
        cut = "; or a shard was cut short while it was read, which the next start names" * ("Bus error" in text)
        complain(text.strip().splitlines()[-1] + cut)
        code = 0
        raise Stopped from None
    finally:
        if trainer is not None:
            trainer.engine.close()  # not trainer.close(), which waits for all ranks: one of them may have failed alone
        finish_logs(code)
        progress.stop()
    folder.end("done", say)
    say(f"done: {total_steps:,} steps; checkpoint and logs are in {folder.path}")
    return 0


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}
