"""Initial weights.

| weights                                   | initial value                                        |
|-------------------------------------------|------------------------------------------------------|
| norms                                     | 1                                                    |
| o_proj, w2 (they write to the residual)   | truncated normal, std 0.02 / sqrt(2 n_layers)        |
| all other matrices                        | truncated normal, std 0.02                           |

- Cut at 3 standard deviations: no outlier at the start.
- Scaling residual outputs keeps the variance of the residual stream independent of depth (GPT-2).
- A parameter's values follow from (seed, its name) and those of an expert from (seed, name, its index) alone: not from
  the order of parameters, the number of experts, layers or ranks, or what else the model has. So two models share what
  they have in common, and a rank can make its own experts only.
- By parameter name: the names are the checkpoint's contract already.
- Drawn on the CPU in fp32, wherever the parameter is: a seed means the same weights on every device.
- The formula stands here: from torch 2.15 on `nn.init.trunc_normal_` draws otherwise, and waits for the device. A seed
  means the same weights under every torch.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moe.model.ranks import own_rows

STD = 0.02
CUT = 3.0
EXPERTS = ("moe.w13", "moe.w2")  # a matrix for each expert: the first dimension counts them


def _trunc_normal_(weight: Tensor, std: float, generators: Sequence[torch.Generator | None] = (None,)) -> None:
    """Normal with mean 0, nothing beyond CUT standard deviations: its inverse distribution at uniform values. Each of
    the generators draws one of the equal parts of the first dimension.
    """
    edge = math.erf(CUT / math.sqrt(2))
    for part, generator in zip(weight.chunk(len(generators)), generators, strict=True):
        part.uniform_(-edge, edge, generator=generator)
    weight.erfinv_().mul_(std * math.sqrt(2)).clamp_(-CUT * std, CUT * std)


def _generator(seed: int, name: str, expert: int | None) -> torch.Generator:
    """Of which torch takes 32 bits: two of 10,000 parameters and experts are alike by chance in one model of a hundred,
    and nothing rests on it.
    """
    digest = hashlib.sha256(f"{seed} {name} {expert}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


@torch.no_grad()
def init_weights(model: nn.Module, *, n_layers: int, seed: int) -> None:
    """Fills every parameter in place, except those on the meta device, which have no memory to fill; of what is divided
    among ranks (DTensors) this rank's rows.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
            continue
        residual = name.endswith(("o_proj.weight", "moe.w2", "shared.w2", "mlp.w2"))
        std = STD / math.sqrt(2 * n_layers) if residual else STD
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        first, count = own_rows(parameter)
        if name.endswith(EXPERTS):
            weight = torch.empty(own.shape, dtype=torch.float32, device="cpu")
            generators = [_generator(seed, name, expert) for expert in range(first, first + count)]
        else:
            weight = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            generators = [_generator(seed, name, None)]
        if generators:
            _trunc_normal_(weight, std, generators)
        own.copy_(weight if name.endswith(EXPERTS) else weight[first : first + count])
