"""Config -> what acts at the events of a run: schedule, clipping, losses, saving; and what tells of it.

Their order is the order in which they act on the same event.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from composer import Callback
from composer.loggers import LoggerDestination

from moe.common.units import say
from moe.config import Config, parse_time
from moe.config.steps import Steps
from moe.optim.muon import Muon
from moe.optim.rates import main_rate_key, schedule
from moe.train.callbacks.alarms import Alarms
from moe.train.callbacks.console import Console
from moe.train.callbacks.events import Events
from moe.train.callbacks.fixed_order import FixedOrder
from moe.train.callbacks.gradients import GradientClipping
from moe.train.callbacks.learning_rate import LearningRate
from moe.train.callbacks.losses import StepLosses
from moe.train.callbacks.progress import Progress
from moe.train.callbacks.samples import Samples
from moe.train.callbacks.saver import CheckpointSaver
from moe.train.callbacks.seeding import StepSeed
from moe.train.callbacks.task_scores import TaskScores
from moe.train.callbacks.throughput import Throughput
from moe.train.callbacks.user import UserCallbacks
from moe.train.callbacks.weights import WeightNorms
from moe.train.checkpointing.changes import versions
from moe.train.checkpointing.checkpoints import TOKENIZER
from moe.train.checkpointing.run_folder import RunFolder
from moe.train.composer_model import MoEModel
from moe.train.distributed.ranks import RANK
from moe.train.eval_tasks import PreparedTasks
from moe.train.inputs import Inputs
from moe.train.logs import RunLog, Writer
from moe.train.stop import StopSignal


def build_callbacks(
    config: Config,
    inputs: Inputs,
    folder: RunFolder,
    stop: StopSignal,
    model: MoEModel,
    optimizer: Muon,
    steps: Steps,
    flops_per_token: float,
    users: UserCallbacks,
) -> list[Callback]:
    """What every rank needs. `optimizer` as configured: no checkpoint has been loaded into it yet."""
    log = steps.every(config.log_interval)
    tokenizer_files = inputs.kept_tokenizer.files if inputs.kept_tokenizer is not None else {}
    clipping = GradientClipping(config.gradient_clip_norm, config.max_skipped_steps, _rate_key(config))
    callbacks: list[Callback] = [
        Throughput(flops_per_token=flops_per_token, log=log),
        StepSeed(config.seed),
        LearningRate(
            schedule(dataclasses.asdict(config)),
            total=steps.duration,
            tokens_per_step=steps.tokens_per_step,
            groups=optimizer.param_groups,
        ),
        StepLosses(model, tokens_per_step=steps.tokens_per_step, log=log, skipped=lambda: clipping.in_a_row > 0),
        clipping,
        WeightNorms(model.transformer, log),
    ]
    saver = CheckpointSaver(
        folder.path,
        every=steps.every(config.save_interval),
        keep=config.save_num_checkpoints_to_keep,
        keep_every=parse_time(config.keep_every) if config.keep_every else None,
        max_failed=config.max_failed_saves,
        stop=stop,
        report=say,
        event=folder.history.event,
        remote=folder.remote,
        url=config.save_folder if "://" in config.save_folder else None,
        more={f"{TOKENIZER}/{name}": content for name, content in tokenizer_files.items()},
        manifest={
            "config": dataclasses.asdict(config),
            "data": inputs.fingerprint,
            "eos_id": inputs.eos_id,
            "vocab_size": inputs.vocab_size,
            "tokenizer": inputs.kept_tokenizer.fingerprint if inputs.kept_tokenizer is not None else None,
            "versions": versions(),
            "changes": folder.history.changes,
            "callbacks": users.sources,
        },
    )
    if config.eval_data is not None and config.sample_prompts:
        callbacks.append(Samples(model.transformer, inputs.tokenizer, list(config.sample_prompts)))
    order = [FixedOrder()] if config.deterministic and torch.cuda.is_available() else []
    return [*callbacks, *([users] if users.classes else []), saver, *order]  # after who may end the step there


def build_scores(
    config: Config,
    tasks: PreparedTasks | None,
    stop: StopSignal,
    model: MoEModel,
    steps: Steps,
    microbatch: int,
    watchdog: Progress,
    callbacks: list[Callback],
) -> list[TaskScores]:
    """What scores `tasks`, in the memory of a validation batch; `callbacks` are those that act before it."""
    if tasks is None or config.eval_tasks is None:
        return []
    (saver,) = (callback for callback in callbacks if isinstance(callback, CheckpointSaver))
    (throughput,) = (callback for callback in callbacks if isinstance(callback, Throughput))
    return [
        TaskScores(
            tasks,
            model.transformer,
            steps.every(config.eval_tasks.interval),
            batch_tokens=microbatch * config.max_seq_len,
            stop=stop,
            saver=saver,
            alive=watchdog.alive,
            spent=throughput.spent,
        )
    ]


def build_loggers(
    config: Config,
    folder: RunFolder,
    stop: StopSignal,
    steps: Steps,
    writers: list[Writer],
    busy: Callable[[], str] = lambda: "",
) -> list[LoggerDestination]:
    """Rows to `writers`; and what rank 0 alone does: events to the run folder, rows to the terminal, alarms. busy: see
    Console.
    """
    log = steps.every(config.log_interval)
    rows = RunLog(writers, log)
    if RANK != 0:
        return [rows]
    alarms = Alarms(
        folder.path,
        log,
        stop=stop,
        run_name=config.run_name,
        command=config.alert_command,
        use_wandb=config.loggers.wandb is not None,
        rate=_rate_key(config),
        report=say,
    )
    return [rows, Events(folder.history), Console(log, busy), alarms]


def _rate_key(config: Config) -> str:
    return main_rate_key(dataclasses.asdict(config.optimizer))
