"""SwiGLU experts.

- Two tensors per layer, w13 (gate rows first, then up) and w2: one product gives gate and up.
- Three backends behind `moe_experts`, chosen once per device:

| backend    | where                                                | products                            |
|------------|------------------------------------------------------|-------------------------------------|
| grouped_mm | sm90 and sm100 in bf16, torch >= 2.10                | torch's grouped kernel              |
| triton     | other NVIDIA GPUs from sm80 on, other dtypes, shapes | grouped kernels of our own          |
| loop       | CPU, or no Triton                                    | one per expert, counts on the host  |

  The first two never wait for the GPU (below sm90 grouped_mm would: it copies offsets to the host).
- SwiGLU, permutation and the routing weights stand between the products as plain operations; torch.compile fuses them.
- Autocast reaches no backend: inputs are cast here, then autocast is off.

T tokens, D width, E experts, K experts per token, N = T*K assignments, F expert hidden.
"""

import functools
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.model import grouped_gemm
from moe.model.dispatch import from_experts, sort_by_expert, to_experts
from moe.model.expert_loop import experts_loop
from moe.model.grouped_gemm import grouped_rows
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


BACKENDS = {"grouped_mm": experts_grouped_mm, "triton": experts_triton, "loop": lambda *args: experts_loop(*args)[0]}


@torch.compiler.assume_constant_result
def choose_backend(device: torch.device, dtype: torch.dtype, width: int, hidden: int) -> str:
    """Name of the backend for inputs of this device and dtype, d_model and expert_hidden."""
    if device.type != "cuda":
        return "loop"
    capability = _capability(device)
    strides_fit = width % 8 == 0 and hidden % 8 == 0  # grouped_mm takes strides of whole 16 bytes only
    hopper_or_later = capability == (9, 0) or capability[0] == 10
    if hasattr(F, "grouped_mm") and hopper_or_later and dtype == torch.bfloat16 and strides_fit:
        return "grouped_mm"
    return "triton" if capability >= (8, 0) and dtype in grouped_gemm.DTYPES and _has_triton() else "loop"


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
    experts = BACKENDS[choose_backend(x_TD.device, dtype, w13_E2FD.shape[2], w2_EDF.shape[2])]
    with no_autocast(x_TD):
        order = sort_by_expert(expert_TK)
        x_ND = to_experts(x_TD.to(dtype), order)
        y_ND = experts(x_ND, w13_E2FD.to(dtype), w2_EDF.to(dtype), counts_E)
        return from_experts(y_ND, weight_TK, order)
