"""Where one start of the command stands: the step it begins at, and what is due there.

Rank 0 decides and sends it to the others (moe/train/opening.py). Heavy imports are inside: the first messages must not
wait for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.common.errors import InputError
from moe.common.units import say
from moe.config import Config

if TYPE_CHECKING:
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
    if step > steps.total:  # nothing is left, an evaluation of it neither
        return start
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
