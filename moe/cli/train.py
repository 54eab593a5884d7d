"""Train, or resume where the run stopped, as `train.py` does; several GPUs: composer -n N -c moe train CONFIG.yaml

Exit codes: 0 done (also: already complete), 1 failed, 2 invalid input, 75 stopped early, or s3 does not answer (run the
same command again), 130 second Ctrl+C. Under several ranks only rank 0 speaks.
"""

from __future__ import annotations

import argparse
import faulthandler
import os

from moe.common.environment import settle
from moe.common.errors import InputError, RunFailed
from moe.common.units import complain, ready, say, show
from moe.config import ConfigError, load_config, parse_seconds
from moe.config.checks import check_ranks
from moe.train.distributed.ranks import LOCAL_RANK, MACHINES, RANK, WORLD_SIZE
from moe.train.run import end, train
from moe.train.stop import EXIT_STOPPED, Stopped, StopSignal

USAGE = (
    "usage: python train.py CONFIG.yaml [key=value ...]      e.g. python train.py yamls/500m.yaml optimizer.lr=5e-4\n"
    "       composer -n N train.py CONFIG.yaml [key=value ...]    on N devices"
)


def main(argv: list[str]) -> int:
    """Runs `train.py`'s command line; returns the exit code."""
    ready()
    if not faulthandler.is_enabled():  # what dies in C says where, and so do loader workers, which are forked
        faulthandler.enable(2)
    if not argv or argv[0] in ("-h", "--help"):
        show(USAGE)
        return 0 if argv else 2
    # Python's tracker of shared memory clears what a second Ctrl+C leaves; that it does is no news
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    stop = StopSignal()
    stop.install()
    say(f"moe: reading {argv[0]} ...")  # before all that takes time
    try:
        settle()
        config = load_config(argv[0], argv[1:])
        if errors := check_ranks(config, WORLD_SIZE):
            raise ConfigError(argv[0], errors)
        if config.check:
            from moe.plan.checks.page import show_checks

            return show_checks(lambda: config, argv[0])
        stop.set_grace(parse_seconds(config.stop_grace))
        stop.time_limit = parse_seconds(config.time_limit) if config.time_limit else None
        return train(config, stop)
    except (InputError, RunFailed) as error:
        if isinstance(error, RunFailed) and error.of_one_rank and WORLD_SIZE > 1:
            complain(f"rank {RANK}: {error}")
        elif LOCAL_RANK == 0:
            complain(str(error))
        return 2 if isinstance(error, InputError) else error.exit_code
    except Stopped:
        return EXIT_STOPPED
    except RuntimeError as error:
        from moe.train.lost_processes import is_lost_rank

        if MACHINES == 1 or not is_lost_rank(error):
            raise
        complain(f"{str(error).strip().splitlines()[-1]}; before a step was taken; run the same command again")
        return EXIT_STOPPED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a yaml; `moe yaml` writes one to begin with")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings over the yaml's: optimizer.lr=5e-4")


def run(args: argparse.Namespace) -> int:
    end(main([args.config, *args.settings]))
