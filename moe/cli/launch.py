"""Start the ranks of this machine, and after a signal wait for their save as long as the yaml's stop_grace says.

`composer -n N train.py CONFIG.yaml` starts the same ranks, and kills them 30 s after a SIGTERM, whatever they save.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from datetime import timedelta
from typing import NoReturn

from moe.common.errors import InputError
from moe.common.signals import CODES
from moe.config import Config, load_config, parse_seconds

SPARE_S = 5.0  # between the end of a rank's own patience and the launcher's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a yaml, as for `moe train`")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings over the yaml's")
    parser.add_argument("-n", "--nproc", type=int, help="ranks on this machine (default: one for each GPU, else 1)")
    parser.add_argument("--nodes", type=int, help="machines (default: 1), each with this command")
    parser.add_argument("--node-rank", type=int, help="number of this machine, from 0")
    parser.add_argument("--master-addr", help="name or address of machine 0")
    parser.add_argument("--master-port", type=int, help="a port that is free on machine 0, the same for all machines")


def run(args: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, _exit_at_once)
    words = arguments(args)
    config = load_config(args.config, args.settings)  # what is wrong with it is said once
    from composer.cli import launcher

    from moe.train.run import end

    sys.argv = ["moe launch", *words]
    launcher.CLEANUP_TIMEOUT = timedelta(seconds=patience(config))
    signal.signal(signal.SIGTERM, _stop_ranks)
    end(launcher.main())


def arguments(args: argparse.Namespace) -> list[str]:
    """The command line of Composer's launcher.

    Raises:
        InputError: no rank, or several machines and not all that they meet by.
    """
    for flag, count in (("-n", args.nproc), ("--nodes", args.nodes)):
        if count is not None and count < 1:
            raise InputError(f"{flag} ({count}) must be at least 1")
    given: list[str] = []
    if args.nproc is not None:
        given += ["-n", str(args.nproc)]
    place = {"--node-rank": args.node_rank, "--master-addr": args.master_addr, "--master-port": args.master_port}
    if args.nodes is None:
        if alone := [flag for flag, value in place.items() if value is not None]:
            raise InputError(f"{alone[0]} ({place[alone[0]]}) is for several machines; give --nodes, on all alike")
        return [*given, "-m", "moe.cli.main", "train", args.config, *args.settings]
    node = args.node_rank or 0
    if not 0 <= node < args.nodes:
        raise InputError(f"--node-rank ({node}) must be 0 to {args.nodes - 1} with --nodes {args.nodes}")
    if args.nodes > 1:
        if args.nproc is None or args.master_addr is None or args.master_port is None:
            raise InputError(f"--nodes ({args.nodes}) needs -n, --master-addr and --master-port, on all alike")
        given += ["--world_size", str(args.nproc * args.nodes), "--node_rank", str(node)]
    for flag, value in (("--master_addr", args.master_addr), ("--master_port", args.master_port)):
        given += [flag, str(value)] if value is not None else []
    return [*given, "-m", "moe.cli.main", "train", args.config, *args.settings]


def patience(config: Config) -> float:
    """Seconds that ranks have after a signal."""
    return parse_seconds(config.stop_grace) + SPARE_S


def _exit_at_once(number: int, frame: object) -> NoReturn:
    """While there are no ranks. Without it process 1 of a container would hear nothing."""
    os._exit(CODES[signal.SIGTERM])


def _stop_ranks(number: int, frame: object) -> NoReturn:
    """As at Ctrl+C, which the launcher tells in a line; a scheduler's second SIGTERM must not cut the save short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
