"""SwiGLU experts.

- Two tensors per layer, w13 (gate rows first, then up) and w2: one product gives gate and up.
- Backends behind `moe_experts` stand in one table; the first that fits device, dtype and shape is taken:

| backend    | where                                                | products                            |
|------------|------------------------------------------------------|-------------------------------------|
| grouped_mm | sm90 and sm100 in bf16, torch >= 2.10                | torch's grouped kernel              |
| triton     | other NVIDIA GPUs from sm80 on, other dtypes, shapes | grouped kernels of our own          |
| loop       | CPU, or no Triton                                    | one per expert, counts on the host  |

  The first two are products of rows sorted by expert; they never wait for the GPU (below sm90 grouped_mm would copy
  offsets to the host). Permutation, SwiGLU and the routing weights stand around them as plain operations, which
  torch.compile fuses. The loop is the layer in one op: on CPU it pays to gather an expert's rows when its turn comes.
- A package with kernels of its own adds a line: `add_backend("name", products, fits)`, before the model is built.
- Autocast reaches no backend: inputs are cast here, then autocast is off.

T tokens, D width, E experts, K experts per token, N = T*K assignments, F expert hidden.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.model.kernels import grouped_gemm
from moe.model.kernels.dispatch import ExpertOrder, from_experts, sort_by_expert, to_experts
from moe.model.kernels.expert_loop import loop_layer
from moe.model.kernels.grouped_gemm import grouped_rows
from moe.model.precision import compute_dtype, no_autocast


def experts_grouped_mm(x_ND: Tensor, w13_E2FD: Tensor, w2_EDF: Tensor, counts_E: Tensor) -> Tensor:
    """Experts on rows sorted by expert, all in one kernel per product: [N, D]. Needs torch >= 2.10."""
    ends_E = counts_E.cumsum(0, dtype=torch.int32)
    gate, up = F.grouped_mm(x_ND, w13_E2FD.transpose(1, 2), offs=ends_E).chunk(2, dim=-1)
    return F.grouped_mm(F.silu(gate) * up, w2_EDF.transpose(1, 2), offs=ends_E)


def experts_triton(x_ND: Tensor, w13_E2FD: Tensor, w2_EDF: Tensor, counts_E: Tensor) -> Tensor:
    """The same with kernels of our own. Needs Triton."""
    gate, up = grouped_rows(x_ND, w13_E2FD, counts_E).chunk(2, dim=-1)
    return grouped_rows(F.silu(gate) * up, w2_EDF, counts_E)


def _fits_grouped_mm(device: torch.device, dtype: torch.dtype, width: int, hidden: int) -> bool:
    if device.type != "cuda" or not hasattr(F, "grouped_mm"):
        return False
    capability = _capability(device)
    hopper_or_later = capability == (9, 0) or capability[0] == 10
    strides_fit = width % 8 == 0 and hidden % 8 == 0  # it takes strides that are multiples of 16 bytes only
    return hopper_or_later and dtype == torch.bfloat16 and strides_fit


def _fits_triton(device: torch.device, dtype: torch.dtype, width: int, hidden: int) -> bool:
    if device.type != "cuda" or dtype not in grouped_gemm.DTYPES:
        return False
    return _capability(device) >= (8, 0) and _has_triton()


Products = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Layer = Callable[[Tensor, Tensor, ExpertOrder, Tensor, Tensor, Tensor], Tensor]


class Backend(NamedTuple):
    """layer: of x_TD, weight_TK, their order, w13, w2 and counts_E, all of one dtype but the weights: [T, D].
    fits: whether it takes inputs of this device, dtype, d_model and expert_hidden.
    """

    layer: Layer
    fits: Callable[[torch.device, torch.dtype, int, int], bool]


def of_sorted_rows(products: Products) -> Layer:
    """A layer around products of rows sorted by expert [N, D], w13, w2 and counts_E: [N, D]."""

    def layer(
        x_TD: Tensor, weight_TK: Tensor, order: ExpertOrder, w13_E2FD: Tensor, w2_EDF: Tensor, counts_E: Tensor
    ) -> Tensor:
        return from_experts(products(to_experts(x_TD, order), w13_E2FD, w2_EDF, counts_E), weight_TK, order)

    return layer


BACKENDS = {
    "grouped_mm": Backend(of_sorted_rows(experts_grouped_mm), _fits_grouped_mm),
    "triton": Backend(of_sorted_rows(experts_triton), _fits_triton),
    "loop": Backend(loop_layer, lambda *_: True),
}


def add_backend(name: str, products: Products, fits: Callable[[torch.device, torch.dtype, int, int], bool]) -> None:
    """Puts one at the front of the table: it is taken wherever it fits (see Backend).

    products: of rows sorted by expert [N, D], w13, w2 and counts_E: [N, D], differentiable, a traceable function.
    """
    others = {key: backend for key, backend in BACKENDS.items() if key != name}
    BACKENDS.clear()
    BACKENDS.update({name: Backend(of_sorted_rows(products), fits), **others})


@torch.compiler.assume_constant_result
def choose_backend(device: torch.device, dtype: torch.dtype, width: int, hidden: int) -> str:
    """Name of the backend for inputs of this device and dtype, d_model and expert_hidden."""
    return next(name for name, backend in BACKENDS.items() if backend.fits(device, dtype, width, hidden))


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def moe_experts(
    x_TD: Tensor, weight_TK: Tensor, expert_TK: Tensor, w13_E2FD: Tensor, w2_EDF: Tensor, counts_E: Tensor
) -> Tensor:
    """Each token through its K experts, summed with the router's weights: [T, D] in autocast's dtype, or x's.

    counts_E (int64) is how often expert_TK names each expert.
    """
    dtype = compute_dtype(x_TD)
    layer = BACKENDS[choose_backend(x_TD.device, dtype, w13_E2FD.shape[2], w2_EDF.shape[2])].layer
    with no_autocast(x_TD):
        order = sort_by_expert(expert_TK)
        return layer(x_TD.to(dtype), weight_TK, order, w13_E2FD.to(dtype), w2_EDF.to(dtype), counts_E)
