"""Host memory that a GPU's state is copied to, kept from one save to the next.

- A copy spends its time on the first write to fresh memory, which the kernel gives page by page. 800 MB on a CPU: 40 to
  57 times as fast into memory that was written before.
- It is no more than before at the peak, when a save is being written; between saves it is no longer given back.
- Loader workers do not get it (MADV_DONTFORK): pages that a fork shares would be copied when they are next written.
- Small tensors, and those that are on the CPU, have copies of their own.
"""

from __future__ import annotations

import mmap
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress

import torch
from torch import Tensor

LEAST_BYTES = 1 << 20


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


class HostMemory:
    """keeps: which tensors, of those that are large, are copied into memory that is kept."""

    def __init__(self, keeps: Callable[[Tensor], bool] = _on_gpu):
        self._keeps = keeps
        self._kept: list[Tensor] = []

    def copies(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Contiguous copies on the CPU, complete when this returns; those of the last call are overwritten or freed."""
        free: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = defaultdict(list)
        while self._kept:
            last = self._kept.pop()
            free[last.shape, last.dtype].append(last)
            del last
        copies = []
        for tensor in tensors:
            source = tensor.detach()
            if source.nbytes < LEAST_BYTES or not self._keeps(source):
                copies.append(source.to("cpu", copy=True))
                continue
            fitting = free[source.shape, source.dtype]
            target = fitting.pop() if fitting else _fresh(source)
            copies.append(target.copy_(source))
            self._kept.append(target)
        return copies


def _fresh(like: Tensor) -> Tensor:
    memory = mmap.mmap(-1, like.nbytes)
    for advice in (mmap.MADV_DONTFORK, mmap.MADV_HUGEPAGE):
        with suppress(OSError):  # a kernel without it
            memory.madvise(advice)
    return torch.frombuffer(memory, dtype=torch.uint8).view(like.dtype).view(like.shape)
