"""SwiGLU experts one after another: the CPU's way.

- One `torch.library` op whose host-side counts stay inside, so that torch.compile sees no graph break. On a GPU it
  would wait for the counts.
- An expert's rows are gathered when its turn comes and stay in the processor's cache until it has used them. The rows
  of all experts together are K times the batch: with many small experts, to write, save and read those costs a tenth
  of the layer. Only the results [N, D], the gates [N, 2F] and, in the backward pass, the gradient of the rows [N, D]
  are held for all experts.
- Each expert's result and gradient is written into its slice of one preallocated tensor; indexing w[e] under autograd
  would allocate a full-size gradient per expert (2 to 4 times slower).

T tokens, K experts per token, N = T*K rows sorted by expert, D width, E experts, F expert hidden.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from moe.model.kernels.dispatch import ExpertOrder, weighted_sum


def _by_expert(counts_E: Tensor, *rows_N: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each expert's part of the tensors."""
    counts = counts_E.tolist()
    return zip(*(tensor.split(counts) for tensor in rows_N), strict=True)


@torch.library.custom_op("moe::experts_loop", mutates_args=())
def experts_loop(
    x_TD: torch.Tensor,
    weight_TK: torch.Tensor,
    order_N: torch.Tensor,
    inverse_TK: torch.Tensor,
    w13_E2FD: torch.Tensor,
    w2_EDF: torch.Tensor,
    counts_E: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each token through its experts, one expert after another, summed with the weights (dispatch.py's order).

    Returns out [T, D] in x's dtype, and what only the backward pass needs: gate and up [N, 2F], the results [N, D].
    """
    n_rows, width = order_N.shape[0], x_TD.shape[1]
    y_ND = x_TD.new_empty(n_rows, width)
    gate_up_N2F = x_TD.new_empty(n_rows, w13_E2FD.shape[1])
    rows = _by_expert(counts_E, order_N // inverse_TK.shape[1], gate_up_N2F, y_ND)
    for (token, gate_up, y), w13_2FD, w2_DF in zip(rows, w13_E2FD.unbind(0), w2_EDF.unbind(0), strict=True):
        torch.mm(x_TD.index_select(0, token), w13_2FD.t(), out=gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        torch.mm(F.silu(gate).mul_(up), w2_DF.t(), out=y)
    return weighted_sum(y_ND, inverse_TK, weight_TK).to(x_TD.dtype), gate_up_N2F, y_ND


@experts_loop.register_fake
def _(
    x_TD: Tensor,
    weight_TK: Tensor,
    order_N: Tensor,
    inverse_TK: Tensor,
    w13_E2FD: Tensor,
    w2_EDF: Tensor,
    counts_E: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    n_rows = order_N.shape[0]
    return torch.empty_like(x_TD), x_TD.new_empty(n_rows, w13_E2FD.shape[1]), x_TD.new_empty(n_rows, x_TD.shape[1])


@torch.library.custom_op("moe::experts_loop_backward", mutates_args=())
def experts_loop_backward(
    grad_TD: torch.Tensor,
    gate_up_N2F: torch.Tensor,
    y_ND: torch.Tensor,
    x_TD: torch.Tensor,
    weight_TK: torch.Tensor,
    order_N: torch.Tensor,
    inverse_TK: torch.Tensor,
    w13_E2FD: torch.Tensor,
    w2_EDF: torch.Tensor,
    counts_E: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, the weights, w13 and w2; an expert without tokens gets zeros."""
    dtype = x_TD.dtype
    grad_TD = grad_TD.to(torch.promote_types(dtype, weight_TK.dtype))
    dx_ND, dw13_E2FD, dw2_EDF = torch.empty_like(y_ND), torch.empty_like(w13_E2FD), torch.empty_like(w2_EDF)
    weight_N = weight_TK.flatten().index_select(0, order_N)
    dweight_N = torch.empty_like(weight_N)
    rows = _by_expert(counts_E, order_N // inverse_TK.shape[1], weight_N, dweight_N, gate_up_N2F, y_ND, dx_ND)
    matrices = zip(w13_E2FD.unbind(0), w2_EDF.unbind(0), dw13_E2FD.unbind(0), dw2_EDF.unbind(0), strict=True)
    for (token, weight, dweight, gate_up, y, dx), (w13_2FD, w2_DF, dw13_2FD, dw2_DF) in zip(
        rows, matrices, strict=True
    ):
        grad = grad_TD.index_select(0, token)
        torch.sum(grad * y, -1, dtype=dweight.dtype, out=dweight)
        grad = (grad * weight[:, None]).to(dtype)
        gate, up = gate_up.chunk(2, dim=-1)
        act = F.silu(gate)
        torch.mm(grad.t(), act * up, out=dw2_DF)
        dh = grad @ w2_DF
        dgate_up = torch.empty_like(gate_up)
        dgate, dup = dgate_up.chunk(2, dim=-1)
        torch.mul(dh, act, out=dup)
        torch.ops.aten.silu_backward.grad_input(dh.mul_(up), gate, grad_input=dgate)
        torch.mm(dgate_up.t(), x_TD.index_select(0, token), out=dw13_2FD)
        torch.mm(dgate_up, w13_2FD, out=dx)
    dweight_TK = torch.empty_like(weight_TK).view(-1).scatter_(0, order_N, dweight_N).view_as(weight_TK)
    return weighted_sum(dx_ND, inverse_TK, None), dweight_TK, dw13_E2FD, dw2_EDF


@experts_loop_backward.register_fake
def _(
    grad_TD: Tensor,
    gate_up_N2F: Tensor,
    y_ND: Tensor,
    x_TD: Tensor,
    weight_TK: Tensor,
    order_N: Tensor,
    inverse_TK: Tensor,
    w13_E2FD: Tensor,
    w2_EDF: Tensor,
    counts_E: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(t) for t in (x_TD, weight_TK, w13_E2FD, w2_EDF))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros of [N, 2F] and [N, D] are made for the other outputs
    ctx.save_for_backward(*output[1:], *inputs)


def _backward(ctx: Any, grad_TD: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    dx_TD, dweight_TK, dw13_E2FD, dw2_EDF = experts_loop_backward(grad_TD.contiguous(), *ctx.saved_tensors)
    return dx_TD, dweight_TK, None, None, dw13_E2FD, dw2_EDF, None


experts_loop.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.moe.experts_loop)
def _flops(
    _: Any,
    __: Any,
    order_shape: list[int],
    ___: Any,
    w13_shape: list[int],
    w2_shape: list[int],
    *_____: Any,
    **____: Any,
) -> int:
    return 2 * order_shape[0] * (w13_shape[1] * w13_shape[2] + w2_shape[1] * w2_shape[2])


@register_flop_formula(torch.ops.moe.experts_loop_backward)
def _flops_backward(_: Any, __: Any, ___: Any, *shapes: Any, **____: Any) -> int:
    return 2 * _flops(*shapes)


def loop_layer(
    x_TD: Tensor, weight_TK: Tensor, order: ExpertOrder, w13_E2FD: Tensor, w2_EDF: Tensor, counts_E: Tensor
) -> Tensor:
    """The layer of experts: [T, D]."""
    return experts_loop(x_TD, weight_TK, *order, w13_E2FD, w2_EDF, counts_E)[0]
