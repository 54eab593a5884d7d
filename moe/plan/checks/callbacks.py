"""The callbacks that the yaml names: imported and made, as a start does, and their state tried."""

from __future__ import annotations

from collections.abc import Iterator

from moe.common.errors import InputError
from moe.config import Config
from moe.plan.checks.result import Result


def check_user_callbacks(config: Config) -> Iterator[Result]:
    """Nothing where the yaml names none."""
    from moe.train.callbacks.user import UserCallbacks
    from moe.train.callbacks.user_classes import load_user_classes

    if not config.callbacks:
        return
    try:
        found = UserCallbacks(load_user_classes(config.callbacks, seed=config.seed), seed=config.seed)
    except InputError as error:
        yield Result("callbacks", "fail", str(error))
    else:
        yield Result("callbacks", "pass", ", ".join(found.callbacks))
