"""What a start says before its first step."""

from __future__ import annotations

import torch

from moe.common.units import say, short
from moe.config import Config
from moe.config.steps import Steps
from moe.model.flops import experts_in_words
from moe.model.step import Step
from moe.optim.auto import Choice, describe
from moe.train.checkpointing.run_folder import RunFolder
from moe.train.distributed.ranks import WORLD_SIZE
from moe.train.inputs import Inputs


def print_plan(
    config: Config,
    inputs: Inputs,
    folder: RunFolder,
    steps: Steps,
    step: Step,
    microbatch: int | str,
    chosen: list[Choice],
    tasks: str | None = None,
) -> None:
    """What the run is about to do: parameters, steps, data, device, folder, fresh or resumed.

    microbatch: as `microbatch_size` gives it. chosen: the numbers that stand for `auto`. tasks: what is
    scored, where something is.
    """
    count = step.count
    tokens = steps.total * steps.tokens_per_step
    rates = describe(chosen, steps, d_model=config.model.d_model, flops=step.flops_per_token * tokens)
    first, *more = inputs.plan
    evaluated = [name or spec.split for name, spec in inputs.eval_streams.items()]
    if config.eval_data is not None and config.eval_data.text:
        evaluated = [f"{config.train_data.text.val_fraction:.2%} of the documents"]  # type: ignore[union-attr]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = {
        "model": f"{count.total:,} parameters, {count.active:,} active per token ({experts_in_words(config.model)})",
        "steps": f"{steps.total:,} of {config.global_train_batch_size} x {config.max_seq_len:,} = "
        f"{steps.tokens_per_step:,} tokens; {short(tokens)} tokens in total",
        **({"rates": f"\n{'':10}".join(rates)} if rates else {}),
        "data": first
        + (f" ({tokens / inputs.epoch_tokens:.2f} epochs)" if inputs.epoch_tokens else "")
        + (f", {', '.join(evaluated)} for evaluation" if evaluated else ", no evaluation")
        + "".join(f"\n{'':10}{line}" for line in more),
        **({"tasks": tasks} if tasks is not None else {}),
        "device": f"{WORLD_SIZE} x {gpu}, {config.precision}, microbatch {microbatch}"
        + (", FSDP2" if config.parallelism.fsdp2 else "")
        + (f" in {config.parallelism.replicas} replicas" if config.parallelism.replicas > 1 else ""),
        "folder": str(folder.path),
        "start": f"resumed from step {folder.checkpoint.step:,} ({short(folder.checkpoint.tokens)} tokens), "
        f"{folder.checkpoint.path.name}"
        if folder.checkpoint
        else f"fresh, from {config.load_path}"
        if config.load_path
        else "fresh",
    }
    say(f"\n{config.run_name}")
    for name, text in lines.items():
        say(f"  {name:<8}{text}")
    say("")
