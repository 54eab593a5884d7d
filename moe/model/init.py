"""Initial weights.

| weights                                   | initial value                                        |
|-------------------------------------------|------------------------------------------------------|
| norms                                     | 1                                                    |
| o_proj, w2 (they write to the residual)   | truncated normal, std 0.02 / sqrt(2 n_layers)        |
| all other matrices                        | truncated normal, std 0.02                           |

- Cut at 3 standard deviations: no outlier at the start.
- Scaling residual outputs keeps the variance of the residual stream independent of depth (GPT-2).
- The formula stands here: from torch 2.15 on `nn.init.trunc_normal_` draws otherwise, and waits for the device. A seed
  means the same weights under every torch.
- By parameter name: the names are the checkpoint's contract already.
"""

import math

import torch
from torch import Tensor, nn

STD = 0.02
CUT = 3.0


def _trunc_normal_(weight: Tensor, std: float) -> None:
    """Normal with mean 0, nothing beyond CUT standard deviations: its inverse distribution at uniform values."""
    edge = math.erf(CUT / math.sqrt(2))
    weight.uniform_(-edge, edge).erfinv_().mul_(std * math.sqrt(2)).clamp_(-CUT * std, CUT * std)


@torch.no_grad()
def init_weights(model: nn.Module, *, n_layers: int) -> None:
    """Fills every parameter in place, in the order of named_parameters, from torch's global generator."""
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
            continue
        residual = name.endswith(("o_proj.weight", "moe.w2", "shared.w2", "mlp.w2"))
        std = STD / math.sqrt(2 * n_layers) if residual else STD
        _trunc_normal_(parameter, std)
