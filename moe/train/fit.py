"""One start of a run whose folder is open: says what will be trained, builds it, resumes and trains to the end."""

from __future__ import annotations

import re

from composer import Trainer

from moe.common.units import complain, say
from moe.config import Config, Every, parse_seconds, parse_time
from moe.train import build
from moe.train.callbacks.build import build_callbacks, build_console
from moe.train.callbacks.progress import Progress
from moe.train.checkpointing.loading import mended_composer
from moe.train.checkpointing.run_folder import RunFolder
from moe.train.distributed.sharding import shard_transformer
from moe.train.inputs import Inputs
from moe.train.logs import RunLog
from moe.train.microbatch import automatic_microbatch
from moe.train.said_plan import print_plan
from moe.train.start import (
    COMPILED,
    RANK,
    WORLD_SIZE,
    Start,
    evaluation_is_due,
    expect_changes,
    open_logs,
)
from moe.train.stop import Stopped, StopSignal

LOST = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)|gloo.*by peer|NCCL.*remote process")


def fit(config: Config, meta: Inputs, folder: RunFolder, start: Start, stop: StopSignal, on_gpu: bool) -> int:
    """Trains to `max_duration`; returns the exit code, 0.

    Raises:
        InputError: something a user can mend; nothing has been overwritten.
        Stopped: ended early, by a signal or with a lost worker or rank; what can be saved is saved.
    """
    tokens_per_step = config.global_train_batch_size * config.max_seq_len
    total_steps = parse_time(config.max_duration).to_steps(tokens_per_step)

    def every(interval: str) -> Every:
        return Every(parse_time(interval), tokens_per_step, total_steps)

    microbatch = build.microbatch_size(config, WORLD_SIZE, on_gpu)
    count = build.count_parameters(**build.model_shape(config.model, meta.vocab_size))
    print_plan(config, meta, folder, count=count, microbatch=microbatch, world_size=WORLD_SIZE, say=say)
    eval_first = evaluation_is_due(config, folder, start.step, every(config.eval_interval))
    if start.step >= total_steps and not eval_first:
        if start.step > total_steps:
            before = f"max_duration ({config.max_duration}) lies before step {start.step:,}"
            say(f"{before}, which is saved in {folder.path}; nothing is left to do")
        else:
            folder.finish_again(say)
            say(f"complete: step {start.step:,} of {total_steps:,} is saved in {folder.path}; nothing left to do")
        return 0

    model = build.build_model(config, meta, meta.tokenizer_name)
    if model.transformer.compiled:
        say(COMPILED)
    if config.parallelism.fsdp2:
        shard_transformer(model.transformer, world_size=WORLD_SIZE, on_gpu=on_gpu)
    optimizer, groups = build.build_optimizer(config, model)
    if not isinstance(microbatch, int):
        microbatch = automatic_microbatch(config, folder, model, optimizer, world_size=WORLD_SIZE, report=say)
    evaluators = build.build_evaluators(
        config,
        meta,
        rank=RANK,
        world_size=WORLD_SIZE,
        every=every(config.eval_interval),
        microbatch=microbatch,
        text=meta.text,
    )
    train_spec = build.build_train_spec(config, meta, WORLD_SIZE, meta.text)
    expect_changes(config, folder, start)
    writers, finish_logs = open_logs(config, folder, start.step, eval_first, meta)
    progress = Progress(
        parse_seconds(config.stall_timeout),
        stacks=folder.path / "stacks",
        rank=RANK,
        note=lambda state: folder.close(state, reason="stall_timeout"),
        end=stop.leave,
    )
    callbacks = build_callbacks(config, meta, folder, stop, model, groups, every)
    log = every(config.log_interval)
    code, trainer = 1, None
    progress.watch()
    try:
        with mended_composer(start.load) as load_path:
            trainer = Trainer(
                model=model,
                optimizers=optimizer,
                train_dataloader=train_spec,
                eval_dataloader=evaluators,
                max_duration=str(parse_time(config.max_duration)),
                device="gpu" if on_gpu else "cpu",
                precision=config.precision,
                device_train_microbatch_size=microbatch,
                run_name=config.run_name,
                seed=config.seed,
                callbacks=[progress, *callbacks],
                loggers=[RunLog(writers, log), *(build_console(config, folder, stop, log) if RANK == 0 else [])],
                load_path=load_path,
                load_weights_only=start.weights_only,
                load_progress_bar=False,
                progress_bar=False,
            )
            if eval_first:
                trainer.eval()
            if start.step < total_steps:
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
