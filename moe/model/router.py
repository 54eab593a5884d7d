"""Top-k router.

- fp32 logits with autocast off: bf16 ties flip the choice between ranks and between a forward and its recomputation.
- Softmax over all experts, then top-k, then renormalised: the order of Qwen3-MoE. No token is dropped.
- Statistics are returned, never stored: recomputation cannot double them. They travel whole, as one `RouterStats`, to
  the losses and the metrics. A further one is a field there, its value in `forward`, and a line in `metrics` where it
  is to be logged.
- Counting by scatter_add: bincount waits for the GPU.

T tokens, D width, E experts, K experts per token, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe.model.precision import at_least_fp32, no_autocast
from moe.model.ranks import maximum_over_ranks, sum_over_ranks


class LayerMetric(NamedTuple):
    """value_L: one value a layer, on the device. over_layers: how they become the model's."""

    value_L: Tensor
    over_layers: Callable[[list[float]], float]


class RouterStats(NamedTuple):
    """What the routing of a batch was like: of one layer, or with a leading L of all (`stack`). Sums over tokens, so
    that microbatches and ranks add up; MAXIMA names the exceptions.

    counts_E    int64, assignments per expert; they sum to T*K
    score_E     fp32, probabilities; carries gradient (load balance)
    z           fp32, squared logsumexp of the logits; carries gradient (arXiv 2202.08906)
    entropy     fp32, entropy of the probabilities in nats; detached
    logit_max   fp32, the largest logit; detached
    """

    counts_E: Tensor
    score_E: Tensor
    z: Tensor
    entropy: Tensor
    logit_max: Tensor

    @staticmethod
    def stack(layers: Sequence[RouterStats]) -> RouterStats:
        return RouterStats(*(torch.stack(values) for values in zip(*layers, strict=True)))

    def detach(self) -> RouterStats:
        return RouterStats(*(value.detach() for value in self))

    def __add__(self, other: RouterStats) -> RouterStats:  # type: ignore[override]
        both = zip(self._fields, self, other, strict=True)
        return RouterStats(*(torch.maximum(a, b) if name in MAXIMA else a + b for name, a, b in both))

    def all_reduce(self) -> RouterStats:
        """Of all ranks, in fp64, which holds counts exactly."""
        sums = iter(sum_over_ranks([v for name, v in zip(self._fields, self, strict=True) if name not in MAXIMA]))
        maxima = iter(maximum_over_ranks([v for name, v in zip(self._fields, self, strict=True) if name in MAXIMA]))
        return RouterStats(*(next(maxima if name in MAXIMA else sums) for name in self._fields))

    def metrics(self, tokens: int) -> dict[str, LayerMetric]:
        """Of the stacked statistics of a step's global batch, which holds `tokens`."""
        return {
            "train/router_z_loss": LayerMetric(self.z / tokens, fmean),
            "router/entropy": LayerMetric(self.entropy / tokens, fmean),
            "router/logit_max": LayerMetric(self.logit_max, max),
        }


MAXIMA = ("logit_max",)


class Routing(NamedTuple):
    """The choice of one layer.

    weight_TK   fp32, sums to 1 over K
    expert_TK   int64
    """

    weight_TK: Tensor
    expert_TK: Tensor
    stats: RouterStats


class Router(nn.Module):
    def __init__(self, *, d_model: int, n_experts: int, top_k: int) -> None:
        super().__init__()
        self.n_experts = n_experts
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(n_experts, d_model))

    def forward(self, x_TD: Tensor) -> Routing:
        with no_autocast(x_TD):
            logits_TE = F.linear(at_least_fp32(x_TD), at_least_fp32(self.weight))
            prob_TE = logits_TE.softmax(-1)
            weight_TK, expert_TK = prob_TE.topk(self.top_k, dim=-1)
            weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
            chosen_N = expert_TK.flatten()
            counts_E = torch.zeros(self.n_experts, dtype=torch.int64, device=x_TD.device)
            counts_E.scatter_add_(0, chosen_N, torch.ones_like(chosen_N))
            logsumexp_T = logits_TE.logsumexp(-1)
            watched_TE = logits_TE.detach()
            stats = RouterStats(
                counts_E=counts_E,
                score_E=prob_TE.sum(0),
                z=logsumexp_T.square().sum(),
                entropy=logsumexp_T.detach().sum() - (prob_TE.detach() * watched_TE).sum(),
                logit_max=watched_TE.max(),
            )
            return Routing(weight_TK, expert_TK, stats)
