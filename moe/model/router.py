"""Top-k router.

- fp32 logits with autocast off: bf16 ties flip the choice between ranks and between a forward and its recomputation.
- Scores of all experts, then top-k, then renormalised: the order of Qwen3-MoE, and with sigmoid that of DeepSeek-V3
  (arXiv 2412.19437, eq. 12 to 16) and GLM-4.5. No token is dropped.
- A bias is added for the choice alone: weights and gradients know nothing of it. It is read here; the balance rule
  writes it after a step (moe/model/balance.py).
- Statistics are returned, never stored: recomputation cannot double them. They travel together, as one `RouterStats`,
  to the losses and the metrics. A further one is a field there, its value in `forward`, and a line in `metrics` where
  it is to be logged.
- Counting by scatter_add: bincount waits for the GPU.

T tokens, D width, E experts, K experts per token, L layers, B bins.
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
    score_E     fp32, scores as shares of their sum over the experts; carries gradient (load balance)
    z           fp32, squared logsumexp of the logits; carries gradient (arXiv 2202.08906). 0 where there is one expert:
                its logit chooses nothing
    entropy     fp32, entropy of those shares in nats; detached
    logit_max   fp32, the largest logit; detached
    needed_EB   int64, in how many tokens a bias in this bin of `bias_range` lifts an expert's score to the (K+1)th
                biased one; no bins where no rule asks for them, nor in evaluation
    """

    counts_E: Tensor
    score_E: Tensor
    z: Tensor
    entropy: Tensor
    logit_max: Tensor
    needed_EB: Tensor

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

    weight_TK   fp32; sums to 1 over K unless the router is set otherwise
    expert_TK   int64
    """

    weight_TK: Tensor
    expert_TK: Tensor
    stats: RouterStats


def bias_range(bias_E: Tensor) -> tuple[Tensor, Tensor]:
    """The biases that an expert may be in need of, with scores between 0 and 1."""
    return bias_E.min() - 1, bias_E.max() + 1


class Router(nn.Module):
    """scoring_func: softmax or sigmoid of the logits. norm_topk_prob: the chosen scores are divided by their sum. Then
    they are multiplied by routed_scaling_factor.

    bias: whether there is one. bins: of RouterStats.needed_EB, which needs a bias and top_k < n_experts.
    """

    bias_E: Tensor | None

    def __init__(
        self,
        *,
        d_model: int,
        n_experts: int,
        top_k: int,
        scoring_func: str = "softmax",
        norm_topk_prob: bool = True,
        routed_scaling_factor: float = 1.0,
        bias: bool = False,
        bins: int = 0,
    ) -> None:
        super().__init__()
        self.n_experts = n_experts
        self.top_k = top_k
        self.sigmoid = scoring_func == "sigmoid"
        self.norm_topk_prob = norm_topk_prob
        self.routed_scaling_factor = routed_scaling_factor
        self.bins = bins
        self.weight = nn.Parameter(torch.empty(n_experts, d_model))
        self.register_buffer("bias_E", torch.zeros(n_experts, dtype=torch.float32) if bias else None)

    def forward(self, x_TD: Tensor) -> Routing:
        with no_autocast(x_TD):
            logits_TE = F.linear(at_least_fp32(x_TD), at_least_fp32(self.weight))
            score_TE = logits_TE.sigmoid() if self.sigmoid else logits_TE.softmax(-1)
            if self.bias_E is None:
                weight_TK, expert_TK = score_TE.topk(self.top_k, dim=-1)
                needed_EB = torch.zeros(self.n_experts, 0, dtype=torch.int64, device=x_TD.device)
            else:
                biased_TE = score_TE.detach() + self.bias_E
                expert_TK = biased_TE.topk(self.top_k, dim=-1).indices
                weight_TK = score_TE.gather(-1, expert_TK)
                needed_EB = self._needed(biased_TE, score_TE.detach(), self.bias_E)
            if self.norm_topk_prob:
                total_T1 = weight_TK.sum(-1, keepdim=True)
                if self.sigmoid or self.bias_E is not None:  # all of them may be 0
                    total_T1 = total_T1 + 1e-20
                weight_TK = weight_TK / total_T1
            if self.routed_scaling_factor != 1.0:
                weight_TK = weight_TK * self.routed_scaling_factor
            chosen_N = expert_TK.flatten()
            counts_E = torch.zeros(self.n_experts, dtype=torch.int64, device=x_TD.device)
            counts_E.scatter_add_(0, chosen_N, torch.ones_like(chosen_N))
            logsumexp_T = logits_TE.logsumexp(-1)
            watched_TE = logits_TE.detach()
            if self.sigmoid:
                share_TE = score_TE / (score_TE.sum(-1, keepdim=True) + 1e-20)
                entropy = torch.special.entr(share_TE.detach()).sum()
            else:
                share_TE = score_TE
                entropy = logsumexp_T.detach().sum() - (score_TE.detach() * watched_TE).sum()
            stats = RouterStats(
                counts_E=counts_E,
                score_E=share_TE.sum(0),
                z=logsumexp_T.square().sum() if self.n_experts > 1 else logsumexp_T.new_zeros(()),
                entropy=entropy,
                logit_max=watched_TE.max(),
                needed_EB=needed_EB,
            )
            return Routing(weight_TK, expert_TK, stats)

    def _needed(self, biased_TE: Tensor, score_TE: Tensor, bias_E: Tensor) -> Tensor:
        """RouterStats.needed_EB: from there on an expert that is chosen stays so; one that is not needs the Kth."""
        bins = self.bins if self.training else 0
        counts_N = torch.zeros(self.n_experts * bins, dtype=torch.int64, device=bias_E.device)
        if bins:
            low, high = bias_range(bias_E)
            needed_TE = biased_TE.topk(self.top_k + 1, dim=-1).values[:, -1:] - score_TE
            bin_TE = ((needed_TE - low) / (high - low) * bins).long().clamp(0, bins - 1)
            place_N = (bin_TE + bins * torch.arange(self.n_experts, device=bias_E.device)).flatten()
            counts_N.scatter_add_(0, place_N, torch.ones_like(place_N))
        return counts_N.view(self.n_experts, bins)
