"""Takes a few steps of a run and shows where their time and memory go, part by part, beside the chip's own limit."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from moe.cli.output import check_writable
from moe.common.errors import InputError
from moe.common.paths import local_path
from moe.common.units import say, short, show, size, tell

if TYPE_CHECKING:
    from moe.plan.profile import Profile

MOST_STEPS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="the yaml of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, as in training")
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed, after one that is not (default: 5)")
    parser.add_argument(
        "--balanced", action="store_true", help="deal the tokens out to the experts in turn, whatever the router says"
    )
    parser.add_argument("--trace", default=None, metavar="FILE", help="write a step's Chrome trace to it")


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.steps <= MOST_STEPS:
        raise InputError(f"--steps ({args.steps}) must be from 1 to {MOST_STEPS:,}")
    if args.trace is not None:
        args.trace = local_path(args.trace, "--trace")
    if args.trace is not None and args.trace.is_dir():
        raise InputError(f"--trace ({args.trace}) is a folder; name a file")
    if args.trace is not None and not args.trace.absolute().parent.is_dir():
        raise InputError(f"--trace ({args.trace}): there is no folder {args.trace.parent}")
    if args.trace is not None:
        check_writable("--trace", args.trace, begins=b"\x1f\x8b" if args.trace.suffix == ".gz" else b"{")
    from moe.config import load_config
    from moe.optim.auto import resolve

    config, _ = resolve(load_config(args.config, args.overrides))
    say("starting ...")
    from moe.train.inputs import check_data

    inputs = check_data(config, report=say)
    import torch

    from moe.plan.profile import profile_run
    from moe.train.microbatch import less_memory
    from moe.train.start import with_precision

    config = with_precision(config, torch.cuda.is_available())
    try:
        found = profile_run(
            config,
            inputs,
            steps=args.steps,
            trace=args.trace,
            say=tell,
            balanced=args.balanced,
        )
    except torch.OutOfMemoryError as error:
        fix = less_memory(config, config.device_train_microbatch_size, ranks=1)
        if config.parallelism.fsdp2:
            fix = "a profile holds the model undivided: give it fewer layers, as model.n_layers=4"
        raise InputError(f"{str(error).splitlines()[0]}; {fix}") from None
    dealt = ", tokens dealt out evenly" * args.balanced
    show("\n".join(["", f"{args.config} on 1 x {found.device}, {found.precision}{dealt}", *_lines(found)]))
    if args.trace is not None:
        show(f"trace of a step: {args.trace} (open it in ui.perfetto.dev or chrome://tracing)")
    return 0


def _lines(found: Profile) -> Iterator[str]:
    tokens = found.samples * found.seq_len
    rate = short(tokens / found.step_seconds)
    yield f"a step: {found.samples} x {found.seq_len} tokens, microbatch {found.microbatch}; {rate} tokens/s"
    peak = found.peak_flops
    yield f"peak of a matrix product here: {short(peak)}FLOP/s"
    yield ""
    yield f"  {'part':<18}{'ms a step':>12}{'share':>8}{'FLOPs':>9}{'of the peak':>13}{'kept for backward':>20}"
    for row in found.rows:
        line = f"  {row.part:<18}{1000 * row.seconds:>12,.1f}{row.seconds / found.step_seconds:>8.1%}"
        if row.flops:
            reached = row.flops / row.seconds / peak
            line += f"{short(row.flops):>9}{reached:>13.0%}{size(row.saved):>20}"
        yield line
    reached = found.step_flops / found.step_seconds / peak
    yield f"  {'the step':<18}{1000 * found.step_seconds:>12,.1f}{1:>8.1%}{short(found.step_flops):>9}{reached:>13.0%}"
    yield ""
    yield "memory: " + ", ".join(f"{name} {size(count)}" for name, count in found.memory.items())
    if found.idle is not None:
        yield f"the GPU is idle for {found.idle:.1%} of the traced step"
