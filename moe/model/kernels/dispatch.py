"""Tokens to the order of experts, and back.

- Rows are sorted by expert once; both directions, forward and backward, are then gathers by a permutation or its
  inverse. index_add, which autograd would use, is slow on CPU, and on GPU its atomics give other bits at each run.
- A stable sort: the order within an expert is the order of the tokens.

T tokens, K experts per token, N = T*K assignments, D width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class ExpertOrder(NamedTuple):
    """order_N[i]: the assignment t*K + k that stands i-th when sorted by expert. inverse_TK[t, k]: where it stands."""

    order_N: Tensor
    inverse_TK: Tensor


def sort_by_expert(expert_TK: Tensor) -> ExpertOrder:
    order_N = expert_TK.flatten().argsort(stable=True)
    inverse_N = torch.empty_like(order_N)
    inverse_N.scatter_(0, order_N, torch.arange(order_N.numel(), device=order_N.device))
    return ExpertOrder(order_N, inverse_N.view(expert_TK.shape))


def weighted_sum(y_ND: Tensor, inverse_TK: Tensor, weight_TK: Tensor | None) -> Tensor:
    """Sum over K of the rows that belong to a token, in the wider dtype of rows and weights."""
    out_TD: Tensor | None = None
    for k, inverse_T in enumerate(inverse_TK.unbind(1)):
        row_TD = y_ND.index_select(0, inverse_T)
        if weight_TK is not None:
            row_TD = row_TD * weight_TK[:, k, None]
        out_TD = row_TD if out_TD is None else out_TD + row_TD
    assert out_TD is not None
    return out_TD


class _ToExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_N: Tensor, inverse_TK: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_TK)
        return x_TD.index_select(0, order_N // inverse_TK.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        (inverse_TK,) = ctx.saved_tensors
        return weighted_sum(grad_ND, inverse_TK, None), None, None


class _FromExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, weight_TK: Tensor, order_N: Tensor, inverse_TK: Tensor) -> Tensor:
        ctx.save_for_backward(y_ND, weight_TK, order_N)
        return weighted_sum(y_ND, inverse_TK, weight_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y_ND, weight_TK, order_N = ctx.saved_tensors
        grad_ND = grad_TD.index_select(0, order_N // weight_TK.shape[1])
        grad_weight_N = (grad_ND * y_ND).sum(-1, dtype=weight_TK.dtype)
        grad_weight_TK = torch.empty_like(weight_TK).view(-1).scatter_(0, order_N, grad_weight_N).view_as(weight_TK)
        grad_y_ND = (grad_ND * weight_TK.flatten().index_select(0, order_N)[:, None]).to(y_ND.dtype)
        return grad_y_ND, grad_weight_TK, None, None


def to_experts(x_TD: Tensor, order: ExpertOrder) -> Tensor:
    """Each token's row once per chosen expert, sorted by expert: [N, D]."""
    return _ToExperts.apply(x_TD, order.order_N, order.inverse_TK)


def from_experts(y_ND: Tensor, weight_TK: Tensor, order: ExpertOrder) -> Tensor:
    """The experts' outputs back in token order, summed over K with the router's weights: [T, D] in y's dtype."""
    # Cast outside: a cast to the same dtype that ends a Function's forward loses the gradient under torch.compile 2.11.
    return _FromExperts.apply(y_ND, weight_TK, order.order_N, order.inverse_TK).to(y_ND.dtype)
