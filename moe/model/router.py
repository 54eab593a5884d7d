"""Top-k router.

- fp32 logits with autocast off: bf16 ties flip the choice between ranks and between a forward and its recomputation.
- Softmax over all experts, then top-k, then renormalised: the order of Qwen3-MoE. No token is dropped.
- Counts, probabilities, the z-loss term and what is only watched (entropy, largest logit) are returned, never stored:
  recomputation cannot double them.
- Counting by scatter_add: bincount waits for the GPU.

T tokens, D width, E experts, K experts per token.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe.model.precision import at_least_fp32, no_autocast


class Routing(NamedTuple):
    """The choice of one layer.

    weight_TK   fp32, sums to 1 over K
    expert_TK   int64
    counts_E    int64 assignments per expert, sums to T*K
    prob_E      fp32 probabilities summed over tokens; carries gradient (load balance)
    z           fp32 scalar, squared logsumexp of the logits summed over tokens; carries gradient (arXiv 2202.08906)
    entropy     fp32 scalar, entropy of the probabilities in nats summed over tokens; detached
    logit_max   fp32 scalar, largest logit; detached
    """

    weight_TK: Tensor
    expert_TK: Tensor
    counts_E: Tensor
    prob_E: Tensor
    z: Tensor
    entropy: Tensor
    logit_max: Tensor


class Router(nn.Module):
    def __init__(self, *, d_model: int, n_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(n_experts, d_model))

    def forward(self, x_TD: Tensor) -> Routing:
        with no_autocast(x_TD):
            logits_TE = F.linear(at_least_fp32(x_TD), at_least_fp32(self.weight))
            prob_TE = logits_TE.softmax(-1)
            weight_TK, expert_TK = prob_TE.topk(self.top_k, dim=-1)
            weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
            chosen_N = expert_TK.flatten()
            counts_E = torch.zeros(self.weight.shape[0], dtype=torch.int64, device=x_TD.device)
            counts_E.scatter_add_(0, chosen_N, torch.ones_like(chosen_N))
            logsumexp_T = logits_TE.logsumexp(-1)
            watched_TE = logits_TE.detach()
            return Routing(
                weight_TK,
                expert_TK,
                counts_E,
                prob_TE.sum(0),
                logsumexp_T.square().sum(),
                logsumexp_T.detach().sum() - (prob_TE.detach() * watched_TE).sum(),
                watched_TE.max(),
            )
