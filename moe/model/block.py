"""One pre-norm layer: x + attention(norm(x)), then x + experts(norm(x)).

- A block returns its router's statistics beside x, and keeps nothing: recomputation cannot double a count.

B batch, S sequence, T = B*S tokens, D width, E experts, F expert hidden.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe.model.attention import Attention, KVCache
from moe.model.documents import Packed
from moe.model.experts import moe_experts
from moe.model.norm import RMSNorm
from moe.model.router import Router, RouterStats


class MoE(nn.Module):
    """Router and experts of one layer. w13 holds the gate rows, then the up rows. routing: other settings of Router."""

    def __init__(
        self, *, d_model: int, n_experts: int, top_k: int, expert_hidden: int, routing: dict[str, Any]
    ) -> None:
        super().__init__()
        self.router = Router(d_model=d_model, n_experts=n_experts, top_k=top_k, **routing)
        self.w13 = nn.Parameter(torch.empty(n_experts, 2 * expert_hidden, d_model))
        self.w2 = nn.Parameter(torch.empty(n_experts, d_model, expert_hidden))

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, RouterStats]:
        x_TD = x_BSD.flatten(0, 1)
        weight_TK, expert_TK, stats = self.router(x_TD)
        out_TD = moe_experts(x_TD, weight_TK, expert_TK, self.w13, self.w2, stats.counts_E)
        return out_TD.view(x_BSD.shape), stats


class Block(nn.Module):
    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        n_experts: int,
        top_k: int,
        expert_hidden: int,
        norm_eps: float,
        qk_norm: bool,
        dropout: float,
        routing: dict[str, Any],
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.attn_norm = RMSNorm(dim=d_model, eps=norm_eps)
        self.attn = Attention(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            norm_eps=norm_eps,
            qk_norm=qk_norm,
        )
        self.moe_norm = RMSNorm(dim=d_model, eps=norm_eps)
        self.moe = MoE(d_model=d_model, n_experts=n_experts, top_k=top_k, expert_hidden=expert_hidden, routing=routing)

    def forward(
        self,
        x_BSD: Tensor,
        rope: tuple[Tensor, Tensor],
        documents: Tensor | Packed | None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, RouterStats]:
        """Returns x [B, S, D] and the router's statistics."""
        attended_BSD = self.attn(self.attn_norm(x_BSD), rope, documents, cache)
        x_BSD = x_BSD + F.dropout(attended_BSD, self.dropout, self.training)
        mixed_BSD, stats = self.moe(self.moe_norm(x_BSD))
        return x_BSD + F.dropout(mixed_BSD, self.dropout, self.training), stats
