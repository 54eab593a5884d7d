"""Train, or go on where the run stopped, as `train.py` does; several GPUs: composer -n N -c moe train CONFIG.yaml"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a yaml; `moe yaml` writes one to begin with")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings over the yaml's: optimizer.lr=5e-4")


def run(args: argparse.Namespace) -> int:
    from moe.run import end, main

    end(main([args.config, *args.settings]))
