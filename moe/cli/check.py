"""Checks what a run needs, each line pass, warn or fail with the fix: config, machine, data, services, run folder, one
real step, a checkpoint written and read. Leaves data and run folder as they are. Exit code 0, or 2 where a line fails.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="the yaml of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, as in training")
    parser.add_argument("--fast", action="store_true", help="sizes instead of hashes, no step, no checkpoint")
    parser.add_argument("--json", action="store_true", help="print the list as JSON; what it does goes to stderr")


def run(args: argparse.Namespace) -> int:
    from moe.config import load_config
    from moe.plan.checks.page import show_checks

    return show_checks(lambda: load_config(args.config, args.overrides), args.config, fast=args.fast, as_json=args.json)
