"""Checks what a run will start from: config, every byte of its data, its checkpoints. Changes nothing."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from moe.errors import InputError

if TYPE_CHECKING:
    from moe.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="the yaml of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, as in training")


def run(args: argparse.Namespace) -> int:
    """0 when all is well, 2 when something must be mended first."""
    from moe.config import load_config

    config = load_config(args.config, args.overrides)
    print(f"pass  config       {args.config}\nstarting ...", flush=True)
    failed = 0
    for name, check in (("data", _data), ("checkpoints", _checkpoints)):
        try:
            for line in check(config):
                print(f"pass  {name:<12} {line}", flush=True)
        except InputError as error:
            failed += 1
            print(f"fail  {name:<12} {error}", flush=True)
    return 2 if failed else 0


def _data(config: Config) -> Iterator[str]:
    from moe.train.inputs import check_data, streams_of

    full = dataclasses.replace(config, train_data=dataclasses.replace(config.train_data, verify="full"))
    inputs = check_data(full, report=partial(print, flush=True))
    remotes = [spec.remote for spec in streams_of(config.train_data).values()]
    if not remotes:
        checked = "every file can be opened"
    else:
        checked = "shards are verified as they arrive" if any(remotes) else "sizes and xxh64 of all shards"
    yield "; ".join([*inputs.plan, checked])


def _checkpoints(config: Config) -> Iterator[str]:
    from moe.train.checkpoints import CheckpointError, read_checkpoint, step_folders
    from moe.train.run_folder import local_folder

    folder = local_folder(config.save_folder, config.run_name)
    faults = []
    for path in reversed(step_folders(folder)):
        try:
            found = read_checkpoint(path)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        if faults:
            raise InputError("; ".join(faults) + f"; training would set it aside and go on from step {found.step:,}")
        yield f"{folder}: goes on from step {found.step:,} ({found.tokens:,} tokens)"
        return
    if faults:
        raise InputError("; ".join(faults) + "; none verifies")
    yield f"{folder}: starts fresh"
