"""Which dtype a computation runs in.

- Autocast reaches neither custom ops nor `grouped_mm` nor `rms_norm`, so code around those asks here and casts by
  itself.
- What must be exact (router, softmax, norms' statistics) runs in at least fp32, and in float64 when the model does:
  tests compare against float64 without a second code path.
"""

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """Dtype of matrix products on `x`: autocast's where autocast is on for x's device, else x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in fp32, or unchanged in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def no_autocast(x: Tensor) -> torch.autocast:
    """Context in which no operation on x's device is cast."""
    return torch.autocast(x.device.type, enabled=False)
