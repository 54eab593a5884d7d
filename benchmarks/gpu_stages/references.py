"""Plain float64 references that the kernels are held against, and inputs for them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def experts_exact(x_TD: Tensor, weight_TK: Tensor, expert_TK: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """Expert by expert, without sorting or grouping."""
    out_TD = torch.zeros_like(x_TD)
    for e in range(w13.shape[0]):
        weight_T = (weight_TK * (expert_TK == e)).sum(1)
        rows = (expert_TK == e).any(1).nonzero().squeeze(1)
        gate, up = F.linear(x_TD[rows], w13[e]).chunk(2, dim=-1)
        out_TD = out_TD.index_add(0, rows, weight_T[rows, None] * F.linear(F.silu(gate) * up, w2[e]))
    return out_TD


def choices(n_tokens: int, n_experts: int, top_k: int, kind: str, generator: torch.Generator) -> Tensor:
    """Distinct experts of each token. even; empty: the first expert has no token; all: expert 1 has every token."""
    score_TE = torch.rand(n_tokens, n_experts, generator=generator)
    if kind == "empty":
        score_TE[:, 0] = -1.0
    if kind == "all":
        score_TE[:, 1] = 2.0
    return score_TE.topk(top_k, dim=-1).indices


def attention_exact(q_BSHC: Tensor, k_BSGC: Tensor, v_BSGC: Tensor, documents_BS: Tensor) -> Tensor:
    """Causal, within documents, from plain products."""
    groups = q_BSHC.shape[2] // k_BSGC.shape[2]
    k, v = (x.repeat_interleave(groups, dim=2) for x in (k_BSGC, v_BSGC))
    score = torch.einsum("bshc,bthc->bhst", q_BSHC, k) / q_BSHC.shape[-1] ** 0.5
    same = documents_BS[:, :, None] == documents_BS[:, None, :]
    hidden = ~(same & torch.ones_like(same[0]).tril())
    weight = score.masked_fill(hidden[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhst,bthc->bshc", weight, v)


def poison(device: str, megabytes: int) -> None:
    """Fills memory that is then given back with NaN: what a kernel leaves unwritten shows."""
    held = [torch.full((size,), float("nan"), device=device) for size in (2**18, 2**20, megabytes * 2**18)]
    del held
