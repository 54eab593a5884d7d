"""Sums and maxima over all ranks, one collective each; with one rank the values themselves.

In fp64: integers stay exact below 2^53, and an order of ranks changes no digit that is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def sum_over_ranks(values: Sequence[Tensor]) -> list[Tensor]:
    """fp64, in the shapes given."""
    return _reduce(values, dist.ReduceOp.SUM)


def maximum_over_ranks(values: Sequence[Tensor]) -> list[Tensor]:
    """fp64, in the shapes given."""
    return _reduce(values, dist.ReduceOp.MAX)


def _reduce(values: Sequence[Tensor], operation: Any) -> list[Tensor]:
    flat = torch.cat([value.double().flatten() for value in values])
    if dist.is_initialized():
        dist.all_reduce(flat, operation)
    parts = flat.split([value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]


def split_dim(tensor: Tensor) -> int:
    """Along which dimension a tensor is divided among ranks: the first, also where it is not divided."""
    if not isinstance(tensor, DTensor):
        return 0
    shard = tensor.placements[-1]  # of two dimensions the first is HSDP's replicas
    assert isinstance(shard, Shard)
    return shard.dim


def own_rows(tensor: Tensor) -> tuple[int, int]:
    """The first row of a tensor, in the dimension of `split_dim`, that this rank has, and how many; of one that is not
    divided all.
    """
    if not isinstance(tensor, DTensor):
        return 0, len(tensor)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    dim = split_dim(tensor)
    return offset[dim], shape[dim]
