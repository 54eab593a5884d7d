"""lm-eval inside of a training: it leaves random states as they are, starts no processes and prints nothing.

Decisions:
- A standard error that has no formula is bootstrapped here, with a generator of its own. lm-eval's way starts a pool of
  processes, which a training with threads, a GPU and signal handlers must not fork, and gives none for weighted
  means.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

QUESTIONS_A_TURN = 200
SEED = 0
NO_ERROR = "N/A"
RESAMPLES = 200  # the standard error is then right to about 5%


@contextmanager
def contained(turn: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within it lm-eval may be called. turn: called now and then while it builds questions."""
    import lm_eval.api.task
    import lm_eval.evaluator_utils

    logger = logging.getLogger("lm_eval")
    level, states = logger.level, (random.getstate(), np.random.get_state(), torch.get_rng_state())
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    logger.setLevel(logging.ERROR)
    random.seed(SEED)  # some tasks shuffle choices or examples: alike on every machine and in every run
    np.random.seed(SEED)
    torch.manual_seed(SEED)

    def error_of(metric: Callable[[Sequence[Any]], float], bootstrap_iters: int) -> Callable[..., float | str]:
        return standard_error_of(metric, bootstrap_iters, turn)

    try:
        with (
            patch.object(lm_eval.api.task, "tqdm", lambda items, **_: _with_turns(items, turn)),
            patch.object(lm_eval.evaluator_utils, "stderr_for_metric", error_of),
        ):
            yield
    finally:
        logger.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)


def _with_turns(items: Iterable[Any], turn: Callable[[], None]) -> Iterator[Any]:
    for number, item in enumerate(items, 1):
        yield item
        if number % QUESTIONS_A_TURN == 0:
            turn()


def standard_error_of(
    metric: Callable[[Sequence[Any]], float], bootstrap_iters: int, turn: Callable[[], None] = lambda: None
) -> Callable[..., float | str]:
    """What gives the standard error of `metric` of a task's items, lm-eval's "N/A" where there is none; in the place of
    its function of the first two arguments. TER has none: it takes a second for few sentences, and resamples are 200.
    """
    from lm_eval.api.metrics import acc_all, acc_all_stderr, mean, mean_stderr, ter

    known = {mean: mean_stderr, acc_all: acc_all_stderr}

    def bootstrap(items: Sequence[Any]) -> float | str:
        error = None if metric is ter else bootstrapped(metric, items, turn)
        return NO_ERROR if error is None else error

    return known.get(metric, bootstrap)


def bootstrapped(
    metric: Callable[[Sequence[Any]], float], items: Sequence[Any], turn: Callable[[], None] = lambda: None
) -> float | None:
    """Standard deviation of `metric` over resampled `items`; None where it is no number on some. turn: called after
    each.
    """
    draws, values = random.Random(0), []
    for _ in range(RESAMPLES):
        try:
            values.append(float(metric(draws.choices(items, k=len(items)))))
        except Exception:  # a metric of the user's own may need what a resample does not have
            values.append(float("nan"))
        turn()
    spread = float(np.std(values, ddof=1))
    return spread if np.isfinite(spread) else None
