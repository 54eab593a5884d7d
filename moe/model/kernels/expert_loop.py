"""SwiGLU experts one after another: the CPU's way.

- One `torch.library` op whose host-side counts stay inside, so that torch.compile sees no graph break. On a GPU it
  would wait for the counts.
- Experts come in blocks of some hundred rows, which are gathered when their turn comes and stay in the processor's
  cache until they have been used; what is not a matrix product is done for a block at once. The rows of all experts
  together are K times the batch: with many small experts, to write, save and read those costs a tenth of the layer.
  Only the results [N, D], the gates [N, 2F] and, in the backward pass, the rows' gradient [N, D] are held for all.
- Each expert's result and gradient is written into its slice of one preallocated tensor; indexing w[e] under autograd
  would allocate a full-size gradient per expert (2 to 4 times slower).

T tokens, K experts per token, N = T*K rows sorted by expert, D width, E experts, F expert hidden.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from moe.model.kernels.dispatch import ExpertOrder, weighted_sum

BLOCK_ROWS = 512  # or one expert, where that has more


class _Block(NamedTuple):
    """Experts that follow each other: which, their rows, and the rows of each."""

    experts: slice
    rows: slice
    counts: list[int]


def _blocks(counts_E: Tensor) -> list[_Block]:
    blocks: list[_Block] = []
    row = 0
    for expert, count in enumerate(counts_E.tolist()):
        if blocks and sum(blocks[-1].counts) + count <= BLOCK_ROWS:
            first, rows, counts = blocks.pop()
            blocks.append(_Block(slice(first.start, expert + 1), slice(rows.start, row + count), [*counts, count]))
        else:
            blocks.append(_Block(slice(expert, expert + 1), slice(row, row + count), [count]))
        row += count
    return blocks


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
    token_N = order_N // inverse_TK.shape[1]
    for experts, rows, counts in _blocks(counts_E):
        x, gate_up, y = x_TD.index_select(0, token_N[rows]), gate_up_N2F[rows], y_ND[rows]
        for x_e, gate_up_e, w13_2FD in zip(x.split(counts), gate_up.split(counts), w13_E2FD[experts], strict=True):
            torch.mm(x_e, w13_2FD.t(), out=gate_up_e)
        gate, up = gate_up.chunk(2, dim=-1)
        hidden = F.silu(gate).mul_(up)
        for hidden_e, y_e, w2_DF in zip(hidden.split(counts), y.split(counts), w2_EDF[experts], strict=True):
            torch.mm(hidden_e, w2_DF.t(), out=y_e)
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
    token_N = order_N // inverse_TK.shape[1]
    for experts, rows, counts in _blocks(counts_E):
        grad, x = grad_TD.index_select(0, token_N[rows]), x_TD.index_select(0, token_N[rows])
        torch.sum(grad * y_ND[rows], -1, dtype=weight_N.dtype, out=dweight_N[rows])
        grad = (grad * weight_N[rows, None]).to(dtype)
        gate, up = gate_up_N2F[rows].chunk(2, dim=-1)
        act = F.silu(gate)
        hidden, dhidden = act * up, torch.empty_like(act)
        parts = zip(grad.split(counts), hidden.split(counts), dhidden.split(counts), strict=True)
        for (grad_e, hidden_e, dhidden_e), w2_DF, dw2_DF in zip(parts, w2_EDF[experts], dw2_EDF[experts], strict=True):
            torch.mm(grad_e.t(), hidden_e, out=dw2_DF)
            torch.mm(grad_e, w2_DF, out=dhidden_e)
        dgate_up = x.new_empty(len(x), 2 * act.shape[1])
        dgate, dup = dgate_up.chunk(2, dim=-1)
        torch.mul(dhidden, act, out=dup)
        torch.ops.aten.silu_backward.grad_input(dhidden.mul_(up), gate, grad_input=dgate)
        parts = zip(dgate_up.split(counts), x.split(counts), dx_ND[rows].split(counts), strict=True)
        for (dgate_up_e, x_e, dx_e), w13_2FD, dw13_2FD in zip(
            parts, w13_E2FD[experts], dw13_E2FD[experts], strict=True
        ):
            torch.mm(dgate_up_e.t(), x_e, out=dw13_2FD)
            torch.mm(dgate_up_e, w13_2FD, out=dx_e)
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
