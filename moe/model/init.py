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
- Drawn where they stay where that is the CPU, by several threads: each parameter has generators of its own, so that the
  values are the same in any order, and fresh memory is what drawing 510M of them takes longest for.
- The formula stands here: from torch 2.15 on `nn.init.trunc_normal_` draws otherwise, and waits for the device. A seed
  means the same weights under every torch.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moe.model.ranks import own_rows, split_dim

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


def init_weights(model: nn.Module, *, n_layers: int, seed: int) -> None:
    """Fills every parameter in place, except those on the meta device, which have no memory to fill; of what is divided
    among ranks (DTensors) this rank's rows.
    """
    fills: list[Callable[[], None]] = []
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        weight = parameter.detach()  # no gradient, in whatever thread
        if name.endswith("norm.weight"):
            weight.fill_(1.0)
            continue
        residual = name.endswith(("o_proj.weight", "moe.w2", "shared.w2", "mlp.w2"))
        std = STD / math.sqrt(2 * n_layers) if residual else STD
        first, count = own_rows(parameter)
        if name.endswith(EXPERTS):
            experts = range(first, first + count) if split_dim(parameter) == 0 else range(len(parameter))
            generators = [_generator(seed, name, expert) for expert in experts]
        else:
            generators = [_generator(seed, name, None)]
        fill = partial(_fill, weight, name.endswith(EXPERTS), first, count, std, generators)
        if _in_place(weight, name.endswith(EXPERTS)):
            fills.append(fill)
        else:  # a thread does not know the caller's modes, under which tensors may be no real ones
            fill()
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for done in [threads.submit(fill) for fill in fills]:
            done.result()


def _own(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight


def _in_place(weight: Tensor, experts: bool) -> bool:
    """Whether its values can be drawn where they stay."""
    own = _own(weight)
    whole = (experts and split_dim(weight) == 0) or own.shape == weight.shape
    return whole and own.dtype == torch.float32 and own.device.type == "cpu"


def _fill(
    weight: Tensor, experts: bool, first: int, count: int, std: float, generators: Sequence[torch.Generator]
) -> None:
    """Fills this rank's rows, `count` from `first` on. experts: a generator for each that it has some of, else one for
    all.
    """
    own, dim = _own(weight), split_dim(weight)
    in_place = _in_place(weight, experts)
    if experts and dim and not in_place:  # a part of each expert: one after another is drawn complete
        for part, generator in zip(own, generators, strict=True):
            matrix = torch.empty(1, *weight.shape[1:], dtype=torch.float32, device="cpu")
            _trunc_normal_(matrix, std, [generator])
            part.copy_(matrix[0].narrow(dim - 1, first, count))
        return
    shape = own.shape if experts else weight.shape
    drawn = own if in_place else torch.empty(shape, dtype=torch.float32, device="cpu")
    if generators:
        _trunc_normal_(drawn, std, generators)
    if not in_place:
        own.copy_(drawn if experts else drawn[first : first + count])
