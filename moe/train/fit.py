"""One start of a run whose folder is open: says what will be trained, builds it, resumes and trains to the end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from composer import Trainer

from moe.common.errors import RunFailed
from moe.common.units import say
from moe.config import Config
from moe.config.steps import Steps
from moe.model.step import make_step
from moe.optim.auto import Choice
from moe.optim.groups import build_optimizer
from moe.train.callbacks.build import build_callbacks, build_loggers, build_scores
from moe.train.callbacks.fixed_order import REFUSED
from moe.train.callbacks.progress import Progress, build_watchdog, watched
from moe.train.callbacks.task_scores import TaskScores
from moe.train.callbacks.user import build_user_callbacks
from moe.train.checkpointing.loading import patched_composer
from moe.train.checkpointing.run_folder import RunFolder
from moe.train.compiling import COMPILED
from moe.train.composer_model import build_model
from moe.train.distributed.ranks import RANK, WORLD_SIZE, agreed
from moe.train.distributed.sharding import shard_transformer
from moe.train.eval_tasks import find_eval_tasks
from moe.train.inputs import Inputs
from moe.train.loaders import build_evaluators, build_train_spec, check_shared_memory
from moe.train.lost_processes import interrupted_by_lost_processes
from moe.train.microbatch import OutOfMemory, choose_microbatch, less_memory, microbatch_size
from moe.train.plan_summary import print_plan
from moe.train.recording import record_start
from moe.train.start import Start
from moe.train.stop import StopSignal


def fit(
    config: Config,
    inputs: Inputs,
    folder: RunFolder,
    start: Start,
    stop: StopSignal,
    on_gpu: bool,
    chosen: list[Choice],
    wait_for_sizes: Callable[[], None],
) -> int:
    """Trains to `max_duration`; returns the exit code, 0.

    chosen: the numbers that stand for `auto`. wait_for_sizes: ends rank 0's look at remote data, which a run that has
    ended does not need.

    Raises:
        InputError: something a user can fix; nothing has been overwritten.
        Stopped: ended early, by a signal or with a lost worker or rank; what can be saved is saved.
    """
    steps = Steps.of(config)
    step = make_step(config, inputs.vocab_size, n_gpus=1, microbatch=1)
    size = microbatch_size(config, WORLD_SIZE, on_gpu)
    more_steps = start.step < steps.total
    ended = not (more_steps or start.eval_first or start.score_first)
    tasks = None if ended else find_eval_tasks(config, inputs, steps)
    print_plan(config, inputs, folder, steps, step, size, chosen, tasks.plan if tasks is not None else None)
    if ended:
        return _nothing_left(config, folder, start, steps)

    agreed(wait_for_sizes, here=RANK == 0)
    check_shared_memory(config)
    users = build_user_callbacks(config)
    model = build_model(config, inputs, on_meta=config.parallelism.fsdp2)
    if model.transformer.compiled:
        say(COMPILED)
    if config.parallelism.fsdp2:
        ranks = {"world_size": WORLD_SIZE, "replicas": config.parallelism.replicas}
        shard_transformer(model.transformer, on_gpu=on_gpu, seed=config.seed, precision=config.precision, **ranks)
    optimizer = build_optimizer(config.optimizer, model.transformer)
    microbatch = choose_microbatch(size, config, step, folder, model, optimizer)
    evaluators = build_evaluators(config, inputs, steps, microbatch)
    train_data = build_train_spec(config, inputs, WORLD_SIZE)
    writers, finish_logs = record_start(config, folder, start, inputs, users)
    watchdog = build_watchdog(config, folder, stop)
    callbacks = build_callbacks(config, inputs, folder, stop, model, optimizer, steps, step.flops_per_token, users)
    scores = build_scores(config, tasks, stop, model, steps, microbatch, watchdog, callbacks)
    loggers = build_loggers(config, folder, stop, steps, writers, lambda: "".join(each.busy for each in scores))
    with watched(watchdog, finish_logs), patched_composer(start.load) as load_path:
        trainer = Trainer(
            model=model,
            optimizers=optimizer,
            train_dataloader=train_data,
            eval_dataloader=evaluators,
            max_duration=str(steps.duration),
            device="gpu" if on_gpu else "cpu",
            precision=config.precision,
            device_train_microbatch_size=microbatch,
            run_name=config.run_name,
            seed=config.seed,
            callbacks=[watchdog, *callbacks, *scores],
            loggers=loggers,
            load_path=load_path,
            load_weights_only=start.weights_only,
            load_progress_bar=False,
            progress_bar=False,
        )
        _train(
            trainer,
            watchdog,
            eval_first=start.eval_first,
            scores=scores[0] if start.score_first else None,
            more_steps=more_steps,
            fix=less_memory(config, microbatch, ranks=WORLD_SIZE),
        )
    if more_steps and (reached := int(trainer.state.timestamp.batch)) < steps.total:
        folder.end("stopped", say, reason="a callback")
        say(f"stopped by a callback at step {reached:,} of {steps.total:,}; {folder.newest()}")
        say("the same command resumes from there; to end the run permanently set max_duration to that step")
        return 0
    folder.end("done", say)
    say(f"done: {steps.total:,} steps; checkpoint and logs are in {folder.path}")
    return 0


def _nothing_left(config: Config, folder: RunFolder, start: Start, steps: Steps) -> int:
    if start.step > steps.total:
        before = f"max_duration ({config.max_duration}) lies before step {start.step:,}"
        say(f"{before}, which is saved in {folder.path}; nothing is left to do")
    else:
        folder.finish_again(say)
        say(f"complete: step {start.step:,} of {steps.total:,} is saved in {folder.path}; nothing left to do")
    return 0


def _train(
    trainer: Trainer, watchdog: Progress, *, eval_first: bool, scores: TaskScores | None, more_steps: bool, fix: str
) -> None:
    """scores: what an interruption left to be scored at this step. fix: what is left to do where memory is short."""
    try:
        with interrupted_by_lost_processes(watchdog):
            if eval_first:
                trainer.eval()
            if scores is not None:
                scores.score(trainer.state, trainer.logger)
            end = trainer.state.max_duration
            assert end is not None
            if more_steps and trainer.state.timestamp.get(end.unit) < end:  # else a callback has stopped it
                trainer.fit()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"{str(error).splitlines()[0]}; {fix}, and run the same command again") from error
    except RuntimeError as error:
        if not any(words in str(error) for words in REFUSED):
            raise
        raise RunFailed(f"deterministic: {str(error).partition(', but')[0]}; set deterministic=false") from error
    finally:
        trainer.engine.close()  # not trainer.close(), which waits for all ranks: one of them may have failed alone
