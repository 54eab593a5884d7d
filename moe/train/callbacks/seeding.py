"""Reseeds before every step, also where Composer tries one again with a smaller microbatch.

Composer restores the random state only at an epoch's start, so after a resume dropout would differ. Here the randomness
of a step is a function of (seed, step, rank) alone. Logs no metrics.
"""

from __future__ import annotations

import hashlib

import torch
from composer import Callback, Logger, State
from composer.utils import dist


def hashed(*position: object) -> int:
    """A 63-bit seed; hashed, because neighbouring seeds of a plain sum would repeat between ranks and steps."""
    digest = hashlib.blake2b("/".join(map(str, position)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def step_seed(seed: int, step: int, rank: int) -> int:
    return hashed(seed, step, rank)


class StepSeed(Callback):
    def __init__(self, seed: int):
        self.seed = seed

    def before_train_batch(self, state: State, logger: Logger) -> None:
        torch.manual_seed(step_seed(self.seed, int(state.timestamp.batch), dist.get_global_rank()))
