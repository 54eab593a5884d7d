"""Matrices that FSDP2 gathers in autocast's dtype: half the bytes on the network, half the memory of a gathered block.

Decisions:
- Of a block all matrices but the router's: their products cast them to that dtype anyway (moe/model/precision.py), so
  every bit is the same. Norms and router are fp32 in autocast too, and are gathered so.
- A group of FSDP2 has one dtype. This is its extension for single parameters: it asks a parameter's local tensor for
  `fsdp_pre_all_gather` and `fsdp_post_all_gather`. The subclass of Tensor that has them outlives what FSDP2 and a move
  from the meta device make of a parameter; whoever else asks for the local tensor gets a plain one, on the same memory.
- What is gathered is the leaf that autograd sees. Its gradient is fp32 (`grad_dtype`): summed over ranks as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from moe.model.router import Router

_aten = torch.ops.aten
KEPT = {_aten.split, _aten.slice, _aten.new_zeros, _aten.empty_like, _aten.detach}


class _Gathered(Tensor):
    gathered: torch.dtype
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        found = super().__torch_dispatch__(func, types, args, kwargs or {})
        return tree_map(cls._again, found) if func.overloadpacket in KEPT else found

    @classmethod
    def _again(cls, value: Any) -> Any:
        return value.as_subclass(cls) if type(value) is Tensor else value

    def fsdp_pre_all_gather(
        self, mesh: Any, outer_size: torch.Size, outer_stride: Any, module: nn.Module, mp_policy: Any
    ) -> tuple[tuple[Tensor, ...], Any]:
        """What this rank brings: its rows, and zeros for as many as the first rank has more."""
        own = self.to(self.gathered)
        if own.shape[1:] == outer_size[1:]:
            missing = -(-outer_size[0] // mesh.size()) - len(own)
            own = F.pad(own, [0, 0] * (own.ndim - 1) + [0, missing])
        return (own,), None

    def fsdp_post_all_gather(
        self, all_gather_outputs: tuple[Tensor, ...], metadata: Any, param_dtype: torch.dtype, *, out: Any = None
    ) -> Any:
        """The parameter is what was gathered; from the second time on it lies there already."""
        return None if out is not None else (all_gather_outputs[0], ())


class _InBf16(_Gathered):
    gathered = torch.bfloat16


class _InFp16(_Gathered):
    gathered = torch.float16


CLASSES = {torch.bfloat16: _InBf16, torch.float16: _InFp16}


def gather_in(block: nn.Module, dtype: torch.dtype) -> None:
    """Has `fully_shard` of this block, which is to follow, gather its matrices so."""
    for module, name in _cast(block):
        weight = getattr(module, name)
        setattr(module, name, nn.Parameter(weight.detach().as_subclass(CLASSES[dtype]), weight.requires_grad))


def keep_gradients(block: nn.Module) -> None:
    """Has what is gathered of this sharded block collect its gradients in fp32, as torch 2.15 does by itself."""
    places = [*_cast(block)]

    def set_dtype(*_: object) -> None:
        for module, name in places:
            weight = getattr(module, name)
            if weight.grad_dtype != torch.float32:
                weight.grad_dtype = torch.float32

    block.register_forward_pre_hook(set_dtype)


def _cast(block: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The matrices whose products autocast's dtype is for."""
    for module in block.modules():
        if not isinstance(module, Router):
            yield from ((module, name) for name, p in module.named_parameters(recurse=False) if p.ndim > 1)
