"""On a GPU: the same step gives the same bits, so that a resumed run equals an uninterrupted one.

- Flash attention adds up the queries' gradient as its blocks of keys are done, in an order that no two runs share: the
  only operation of a training step that does (benchmarks/gpu_stages/whole_model.py looks at each). Where torch is asked
  for deterministic algorithms, its kernel goes over the keys in their order.
- Asked for from a microbatch's forward pass to the end of its backward pass, recomputed blocks included: evaluation and
  what a user's callbacks do between steps keep every operation. What they do after a forward pass or the loss does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from composer import Callback, Logger, State

# of torch's error, where an operation knows no such way
REFUSED = ("does not have a deterministic implementation", "is not deterministic because it uses CuBLAS")
# torch before 2.11 wants it said, and looks once: before the first product of this process
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def fixed_order(on: bool = True) -> Iterator[None]:
    """Within it torch's operations are deterministic, or raise RuntimeError (one of REFUSED)."""
    if not on:
        yield
        return
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False  # a debugging aid, and a pass over all that is allocated
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = filled


class FixedOrder(Callback):
    def before_forward(self, state: State, logger: Logger) -> None:
        self.order = fixed_order()
        self.order.__enter__()

    def after_backward(self, state: State, logger: Logger) -> None:
        self.order.__exit__(None, None, None)
