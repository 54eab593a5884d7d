"""Random numbers for code that is not ours: its draws move none of the run's, and are the same after a resume."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch

from moe.train.callbacks.seeding import hashed


@contextmanager
def own_random(*position: object) -> Iterator[None]:
    """Within it the global generators of Python, numpy and torch are seeded by `position`; then they are as before."""
    seed = hashed(*position)
    python, array, cpu = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    random.seed(seed)
    numpy.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every kind of device, which takes time
    if gpu is not None:
        torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)
