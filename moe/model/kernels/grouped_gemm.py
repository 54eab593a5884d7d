"""Grouped matrix product in Triton: each expert's rows times its matrix, forward and both gradients.

- Two `torch.library` ops, each the other's gradient: rows times matrices, and rows times rows (the weight gradient).
  torch.compile sees no graph break; Triton is imported when the first of them runs.
- The height of a tile follows the mean number of rows per expert, which the host knows; the counts never leave the
  device. The tile sizes fit the shared memory of every GPU from sm80 on; they are not tuned.
- A weight gradient is one program per tile and expert: with one expert taking every token, few programs do all.

N rows, sorted by expert, E experts, I inner dimension, J columns.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _tile(*, n_rows: int, n_experts: int, itemsize: int) -> dict[str, int]:
    """Rows and inner width of a tile, and how its loads are staged."""
    height = min(128, max(16, _power_of_2(n_rows // n_experts)))
    return {"BLOCK_N": height, "BLOCK_K": 64 // itemsize, "num_warps": 8 if height == 128 else 4, "num_stages": 3}


def _weight_tile(*, itemsize: int) -> dict[str, int]:
    """As `_tile`, of a weight gradient: the rows that are taken at a time."""
    return {"BLOCK_N": 64 // itemsize, "num_warps": 8, "num_stages": 3}


@torch.library.custom_op("moe::grouped_rows", mutates_args=())
def grouped_rows(
    x_NI: torch.Tensor, w_EJI: torch.Tensor, counts_E: torch.Tensor, transposed: bool = False
) -> torch.Tensor:
    """Each row times its expert's matrix, transposed: [N, J]. With `transposed` w is [E, I, J].

    counts_E: rows of each expert, on the device of the rest.
    """
    from moe.model.kernels.triton_kernels import grouped_rows_kernel

    n_rows, n_inner = x_NI.shape
    n_experts = w_EJI.shape[0]
    w_EJI = w_EJI.transpose(1, 2) if transposed else w_EJI
    n_cols = w_EJI.shape[1]
    out_NJ = x_NI.new_empty(n_rows, n_cols)
    tile = _tile(n_rows=n_rows, n_experts=n_experts, itemsize=x_NI.element_size())
    width = min(128, max(16, _power_of_2(n_cols)))
    grid = (-(-n_rows // tile["BLOCK_N"]) + n_experts, -(-n_cols // width))
    with torch.cuda.device_of(x_NI):
        grouped_rows_kernel[grid](
            x_NI, w_EJI, out_NJ, counts_E,
            n_cols, n_inner, n_experts,
            *x_NI.stride(), *w_EJI.stride(), out_NJ.stride(0),
            BLOCK_J=width, GROUPS=_power_of_2(n_experts), UPCAST=x_NI.device.type == "cpu", **tile,
        )  # fmt: skip
    return out_NJ


@grouped_rows.register_fake
def _(x_NI: Tensor, w_EJI: Tensor, counts_E: Tensor, transposed: bool = False) -> Tensor:
    return x_NI.new_empty(x_NI.shape[0], w_EJI.shape[2 if transposed else 1])


@torch.library.custom_op("moe::grouped_weight", mutates_args=())
def grouped_weight(a_NI: torch.Tensor, b_NJ: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
    """For each expert a.T @ b over its rows: [E, I, J]; zeros where it has none."""
    from moe.model.kernels.triton_kernels import grouped_weight_kernel

    n_experts, n_inner, n_cols = counts_E.shape[0], a_NI.shape[1], b_NJ.shape[1]
    out_EIJ = a_NI.new_empty(n_experts, n_inner, n_cols)
    a_NI, b_NJ = a_NI.contiguous(), b_NJ.contiguous()
    high, wide = (min(128, max(16, _power_of_2(n))) for n in (n_inner, n_cols))
    grid = (n_experts, -(-n_inner // high) * -(-n_cols // wide))
    with torch.cuda.device_of(a_NI):
        grouped_weight_kernel[grid](
            a_NI, b_NJ, out_EIJ, counts_E,
            n_inner, n_cols, n_experts,
            a_NI.stride(0), b_NJ.stride(0),
            BLOCK_I=high, BLOCK_J=wide, GROUPS=_power_of_2(n_experts), UPCAST=a_NI.device.type == "cpu",
            **_weight_tile(itemsize=a_NI.element_size()),
        )  # fmt: skip
    return out_EIJ


@grouped_weight.register_fake
def _(a_NI: Tensor, b_NJ: Tensor, counts_E: Tensor) -> Tensor:
    return a_NI.new_empty(counts_E.shape[0], a_NI.shape[1], b_NJ.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_NI, w_EJI, counts_E, transposed = inputs
    assert not transposed, "the backward pass of a gradient"
    ctx.save_for_backward(x_NI, w_EJI, counts_E)


def _backward(ctx: Any, grad_NJ: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    x_NI, w_EJI, counts_E = ctx.saved_tensors
    dx_NI = grouped_rows(grad_NJ, w_EJI, counts_E, True) if ctx.needs_input_grad[0] else None
    dw_EJI = grouped_weight(grad_NJ, x_NI, counts_E) if ctx.needs_input_grad[1] else None
    return dx_NI, dw_EJI, None, None


grouped_rows.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.moe.grouped_rows)
def _flops(x_shape: list[int], w_shape: list[int], *_: Any, **__: Any) -> int:
    return 2 * x_shape[0] * w_shape[1] * w_shape[2]


@register_flop_formula(torch.ops.moe.grouped_weight)
def _flops_weight(a_shape: list[int], b_shape: list[int], *_: Any, **__: Any) -> int:
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]
