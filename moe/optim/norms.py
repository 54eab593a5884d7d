"""L2 norms of tensors of which each rank may hold a part (DTensor, split over its first dimension).

With `full_tensor` each norm is a collective of its own, hundreds in a deep model. Here all of them are one, with the
same bits on two ranks (of more, the order of a sum is the library's).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_norms(tensors: list[Tensor]) -> list[Tensor]:
    """The norm of what this rank holds of each."""
    return [*torch._foreach_norm([local(tensor) for tensor in tensors])] if tensors else []


def full_norms(norms: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """The norms of complete tensors, the same on every rank. A collective, where one of them is sharded.

    norms: of what this rank holds of each tensor of `like`; scalars.
    """
    found, groups = list(norms), dict[Any, list[int]]()
    for number, tensor in enumerate(like):
        if isinstance(tensor, DTensor):
            assert isinstance(tensor.placements[-1], Shard)  # of two dimensions the first is HSDP's replicas
            groups.setdefault(tensor.device_mesh.get_group(-1), []).append(number)
    for group, numbers in groups.items():
        squares = torch.stack([norms[number] for number in numbers]) ** 2
        dist.all_reduce(squares, group=group)
        for number, norm in zip(numbers, (squares**0.5).unbind(), strict=True):
            found[number] = norm
    return found


def total(norms: list[Tensor]) -> Tensor:
    """The norm over all tensors of which these are the norms."""
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)
