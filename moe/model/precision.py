"""Which dtype a computation runs in.

- Autocast reaches neither custom ops nor `grouped_mm` nor `rms_norm`, so code around those asks here and casts by
  itself.
- `Linear` casts its weight explicitly: on torch 2.7 a no_grad use of a weight inside autocast leaves a cast without
  gradient in autocast's cache, and the next use of that weight trains nothing.
- What must be exact (router, softmax, norms' statistics) runs in at least fp32, and in float64 when the model does:
  tests compare against float64 without a second code path.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compute_dtype(x: Tensor) -> torch.dtype:
    """Dtype of matrix products on `x`: autocast's where autocast is on for x's device, else x's own."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # autocast does not know the meta device
        return x.dtype
    return torch.get_autocast_dtype(device)


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in fp32, or unchanged in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Context in which no operation on x's device is cast."""
    device = x.device.type
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T in autocast's dtype, or x's."""
    dtype = compute_dtype(x)
    return F.linear(x.to(dtype), weight.to(dtype))


class Linear(nn.Linear):
    """nn.Linear without bias that keeps its gradient under autocast on every torch."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)
