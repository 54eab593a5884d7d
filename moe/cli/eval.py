"""Measures a checkpoint: its loss on converted data (--data), or its score in tasks of lm-eval (--tasks, --suite)."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from moe.cli.output import RESULT_BEGINS, check_writable
from moe.common.errors import InputError
from moe.common.paths import local_path
from moe.common.units import note, redraw, show

TOKENS_PER_FORWARD = 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", help="run folder or step folder, e.g. checkpoints/demo")
    add("--step", type=int, default=None, help="of a run folder, the checkpoint of this step")
    add("--tokenizer", default=None, help="folder or hub name of another tokenizer than the checkpoint's own")
    add("--data", action="append", metavar="FOLDER", help="converted data; may be given several times")
    add("--split", default=None, help="the split of --data (default: val)")
    add(
        "--max-batches",
        type=int,
        default=None,
        help="at most so many batches of the run's global_train_batch_size, as eval_data.max_batches (default: all)",
    )
    add("--batch-size", type=int, default=None, help="sequences at a time; sets the memory, not the result")
    add("--tasks", default=None, help="tasks of lm-eval, e.g. hellaswag,arc_easy")
    add("--suite", default=None, help="a fixed list of tasks with a centred mean: core (docs/evaluation.md)")
    add("--include-path", default=None, help="folder with task files (yaml) of your own")
    add("--fewshot", type=int, default=None, help="examples before each question of --tasks (default: the task's own)")
    add("--limit", type=int, default=None, help="at most so many examples of each task")
    add("--beside", action="append", metavar="MODEL", help="a Hugging Face folder or hub name to score as well")
    add("--output", default=None, help="write the results of the tasks to this file, too (json)")
    add(
        "--through-export",
        action="store_true",
        help="ask lm-eval's own model of the checkpoint's export, which stays in RUN/hf, in the place of this one",
    )


def run(args: argparse.Namespace) -> int:
    if not args.data and args.tasks is None and args.suite is None:
        raise InputError(
            "give --data FOLDER for the loss on converted data, --tasks NAMES for lm-eval's tasks, or --suite core"
        )
    check_effect(args)
    for flag, value, least in (
        ("--batch-size", args.batch_size, 1),
        ("--limit", args.limit, 1),
        ("--fewshot", args.fewshot, 0),
    ):
        if value is not None and value < least:
            raise InputError(f"{flag} ({value}) must be at least {least}")
    args.split = args.split or "val"
    args.max_batches = -1 if args.max_batches is None else args.max_batches
    if args.max_batches < 1 and args.max_batches != -1:
        raise InputError(f"--max-batches ({args.max_batches}) must be at least 1, or -1 for all of the split")
    args.data = [local_path(folder, "--data") for folder in args.data or []]
    for flag in ("include_path", "output"):
        if getattr(args, flag) is not None:
            setattr(args, flag, local_path(getattr(args, flag), f"--{flag.replace('_', '-')}"))
    if args.output is not None:
        check_writable("--output", args.output, RESULT_BEGINS)
    note("starting ...")
    if args.data:
        measure_data(args)
    if args.tasks is not None or args.suite is not None:
        from moe.cli.eval_tasks import measure_tasks

        measure_tasks(args)
    return 0


def check_effect(args: argparse.Namespace) -> None:
    """Raises InputError for a flag that would change nothing."""
    of_data = {"--split": args.split, "--max-batches": args.max_batches}
    of_tasks = {
        "--include-path": args.include_path,
        "--fewshot": args.fewshot,
        "--limit": args.limit,
        "--beside": args.beside,
        "--output": args.output,
        "--through-export": args.through_export or None,
    }
    no_tasks = args.tasks is None and args.suite is None
    for needed, absent, flags in (("--data", not args.data, of_data), ("--tasks", no_tasks, of_tasks)):
        for flag, value in flags.items():
            if absent and value is not None:
                raise InputError(f"{flag} ({value}) has no effect without {needed}; leave it out, or give {needed}")


def measure_data(args: argparse.Namespace) -> None:
    """Prints loss, perplexity and bits per byte of each --data."""
    import torch

    from moe.data.text.tokenizer import token_bytes, tokenizer_fingerprint
    from moe.evaluate.loss import evaluate
    from moe.train.checkpointing.trained_tokenizer import checkpoint_tokenizer
    from moe.use.inference import find_checkpoint, load_model

    checkpoint = find_checkpoint(args.checkpoint, args.step)
    config = checkpoint.manifest["config"]
    if args.max_batches != -1 and "global_train_batch_size" not in config:
        raise InputError(f"--max-batches counts batches of the run, and {checkpoint.path} was imported; leave it out")
    tokenizer = checkpoint_tokenizer(checkpoint, args.tokenizer, note)
    fingerprint, name = tokenizer_fingerprint(tokenizer), args.tokenizer or config["tokenizer"]
    metas = [check_data(folder, args.split, name, fingerprint) for folder in args.data]
    model = load_model(checkpoint)
    bf16 = torch.cuda.is_available() and config.get("precision") == "amp_bf16"
    for folder, meta in zip(args.data, metas, strict=True):
        samples = meta.samples[args.split]
        if args.max_batches != -1:
            samples = min(samples, args.max_batches * config["global_train_batch_size"])
        found = evaluate(
            model,
            folder / args.split,
            samples=samples,
            seq_len=meta.seq_len,
            document_mask=config["model"].get("document_mask", False),  # an import tells of none
            bf16=bf16,
            token_bytes=token_bytes(tokenizer),
            batch_size=args.batch_size or max(1, TOKENS_PER_FORWARD // meta.seq_len),
            progress=partial(show_progress, folder, samples),
        )
        bits = "" if found.bits_per_byte is None else f"  bits per byte {found.bits_per_byte:.4f}"
        show(
            f"{folder / args.split} at step {checkpoint.step:,}: loss {found.loss:.4f}  "
            f"perplexity {found.perplexity:.4g}{bits}  ({found.targets:,} tokens predicted in {samples:,} sequences)"
        )


def check_data(folder: Path, split: str, name: str, fingerprint: str) -> Any:
    """The data's description, after it was held against the tokenizer in use (`name`) and its own shards."""
    from moe.data.meta import read_meta
    from moe.data.read.verify import verify_split

    meta = read_meta(folder)
    if meta.tokenizer_fingerprint != fingerprint:
        raise InputError(f"--data ({folder}) was made with {meta.tokenizer}, which is not the checkpoint's ({name})")
    if not meta.samples.get(split):
        there = ", ".join(f"{name} ({count})" for name, count in meta.samples.items())
        raise InputError(f"--split ({split}): {folder} has no sequences of it; there are {there}")
    if errors := verify_split(folder / split):
        raise InputError(f"--data ({folder / split}) is damaged:\n  " + "\n  ".join(errors))
    return meta


def show_progress(folder: Path, samples: int, done: int) -> None:
    if sys.stderr.isatty():
        redraw(f"{folder}: {done:,} of {samples:,} sequences" if done < samples else "")
