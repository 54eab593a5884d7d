"""SwiGLU experts one after another: the CPU's way.

- One `torch.library` op whose host-side counts stay inside, so that torch.compile sees no graph break. On a GPU it
  would wait for the counts.
- Each expert's result and gradient is written into its slice of one preallocated tensor; indexing w[e] under autograd
  would allocate a full-size gradient per expert (2 to 4 times slower).

N rows, sorted by expert, D width, E experts, F expert hidden.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


def _expert_slices(counts_E: Tensor) -> list[slice]:
    ends = list(itertools.accumulate(counts_E.tolist()))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


@torch.library.custom_op("moe::experts_loop", mutates_args=())
def experts_loop(
    x_ND: torch.Tensor, w13_E2FD: torch.Tensor, w2_EDF: torch.Tensor, counts_E: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts on rows sorted by expert, one after another.

    Returns y [N, D], and gate and up [N, 2F], which only the backward pass needs.
    """
    y_ND = torch.empty_like(x_ND)
    gate_up_N2F = x_ND.new_empty(x_ND.shape[0], w13_E2FD.shape[1])
    for rows, w13_2FD, w2_DF in zip(_expert_slices(counts_E), w13_E2FD.unbind(0), w2_EDF.unbind(0), strict=True):
        torch.mm(x_ND[rows], w13_2FD.t(), out=gate_up_N2F[rows])
        gate, up = gate_up_N2F[rows].chunk(2, dim=-1)
        torch.mm(F.silu(gate).mul_(up), w2_DF.t(), out=y_ND[rows])
    return y_ND, gate_up_N2F


@experts_loop.register_fake
def _(x_ND: Tensor, w13_E2FD: Tensor, w2_EDF: Tensor, counts_E: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_ND), x_ND.new_empty(x_ND.shape[0], w13_E2FD.shape[1])


@torch.library.custom_op("moe::experts_loop_backward", mutates_args=())
def experts_loop_backward(
    grad_ND: torch.Tensor,
    x_ND: torch.Tensor,
    gate_up_N2F: torch.Tensor,
    w13_E2FD: torch.Tensor,
    w2_EDF: torch.Tensor,
    counts_E: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, w13 and w2; an expert without tokens gets zeros."""
    dx_ND, dw13_E2FD, dw2_EDF = torch.empty_like(x_ND), torch.empty_like(w13_E2FD), torch.empty_like(w2_EDF)
    slices = _expert_slices(counts_E)
    weights = zip(w13_E2FD.unbind(0), w2_EDF.unbind(0), dw13_E2FD.unbind(0), dw2_EDF.unbind(0), strict=True)
    for rows, (w13_2FD, w2_DF, dw13_2FD, dw2_DF) in zip(slices, weights, strict=True):
        gate, up = gate_up_N2F[rows].chunk(2, dim=-1)
        act = F.silu(gate)
        torch.mm(grad_ND[rows].t(), act * up, out=dw2_DF)
        dh = grad_ND[rows] @ w2_DF
        dgate_up = torch.empty_like(gate_up_N2F[rows])
        dgate, dup = dgate_up.chunk(2, dim=-1)
        torch.mul(dh, act, out=dup)
        torch.ops.aten.silu_backward.grad_input(dh.mul_(up), gate, grad_input=dgate)
        torch.mm(dgate_up.t(), x_ND[rows], out=dw13_2FD)
        torch.mm(dgate_up, w13_2FD, out=dx_ND[rows])
    return dx_ND, dw13_E2FD, dw2_EDF


@experts_loop_backward.register_fake
def _(
    grad_ND: Tensor, x_ND: Tensor, gate_up_N2F: Tensor, w13_E2FD: Tensor, w2_EDF: Tensor, counts_E: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x_ND), torch.empty_like(w13_E2FD), torch.empty_like(w2_EDF)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    x_ND, w13_E2FD, w2_EDF, counts_E = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else zeros of [N, 2F] are made for the second output
    ctx.save_for_backward(x_ND, output[1], w13_E2FD, w2_EDF, counts_E)


def _backward(ctx: Any, grad_ND: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
    return (*experts_loop_backward(grad_ND.contiguous(), *ctx.saved_tensors), None)


experts_loop.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.moe.experts_loop)
def _flops(x_shape: list[int], w13_shape: list[int], w2_shape: list[int], *_: Any, **__: Any) -> int:
    return 2 * x_shape[0] * (w13_shape[1] * w13_shape[2] + w2_shape[1] * w2_shape[2])


@register_flop_formula(torch.ops.moe.experts_loop_backward)
def _flops_backward(_: Any, x_shape: list[int], __: Any, *weight_shapes: list[int], **___: Any) -> int:
    return 2 * _flops(x_shape, *weight_shapes)
