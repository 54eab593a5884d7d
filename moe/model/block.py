"""One pre-norm layer: x + attention(norm(x)), then x + experts(norm(x)).

- A block returns its router's statistics beside x, and keeps nothing: recomputation cannot double a count.
- A dense block has one MLP for all tokens, no router, and returns None beside x.

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
from moe.model.precision import linear
from moe.model.router import Router, RouterStats


class SwiGLU(nn.Module):
    """w2(silu(gate(x)) * up(x)); w13 holds the gate rows, then the up rows, as the experts' does."""

    def __init__(self, *, d_model: int, hidden: int) -> None:
        super().__init__()
        self.w13 = nn.Parameter(torch.empty(2 * hidden, d_model))
        self.w2 = nn.Parameter(torch.empty(d_model, hidden))

    def forward(self, x_TD: Tensor) -> Tensor:
        gate, up = linear(x_TD, self.w13).chunk(2, dim=-1)
        return linear(F.silu(gate) * up, self.w2)


class MoE(nn.Module):
    """Router and experts of one layer, and beside them one that every token passes, as wide as n_shared_experts of them
    (DeepSeekMoE, arXiv 2401.06066). w13 holds the gate rows, then the up rows. routing: other settings of Router.
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_experts: int,
        top_k: int,
        expert_hidden: int,
        n_shared_experts: int,
        routing: dict[str, Any],
    ) -> None:
        super().__init__()
        self.router = Router(d_model=d_model, n_experts=n_experts, top_k=top_k, **routing)
        self.w13 = nn.Parameter(torch.empty(n_experts, 2 * expert_hidden, d_model))
        self.w2 = nn.Parameter(torch.empty(n_experts, d_model, expert_hidden))
        shared = n_shared_experts * expert_hidden
        self.shared = SwiGLU(d_model=d_model, hidden=shared) if shared else None

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, RouterStats]:
        x_TD = x_BSD.flatten(0, 1)
        weight_TK, expert_TK, stats = self.router(x_TD)
        out_TD = moe_experts(x_TD, weight_TK, expert_TK, self.w13, self.w2, stats.counts_E)
        if self.shared is not None:
            out_TD = out_TD + self.shared(x_TD)
        return out_TD.view(x_BSD.shape), stats


class Block(nn.Module):
    """dense_hidden: hidden width of the MLP of a dense block; None makes one of experts."""

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
        n_shared_experts: int,
        norm_eps: float,
        qk_norm: bool | str,
        dropout: float,
        dense_hidden: int | None,
        routing: dict[str, Any],
    ) -> None:
        super().__init__()
        self.moe: MoE | None
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
        if dense_hidden is not None:
            self.mlp = SwiGLU(d_model=d_model, hidden=dense_hidden)
            self.moe = None
            return
        self.moe = MoE(
            d_model=d_model,
            n_experts=n_experts,
            top_k=top_k,
            expert_hidden=expert_hidden,
            n_shared_experts=n_shared_experts,
            routing=routing,
        )

    def forward(
        self,
        x_BSD: Tensor,
        rope: tuple[Tensor, Tensor],
        documents: Tensor | Packed | None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, RouterStats | None]:
        """Returns x [B, S, D] and the router's statistics, None where there is no router."""
        attended_BSD = self.attn(self.attn_norm(x_BSD), rope, documents, cache)
        x_BSD = x_BSD + F.dropout(attended_BSD, self.dropout, self.training)
        normed_BSD = self.moe_norm(x_BSD)
        mixed_BSD, stats = (self.mlp(normed_BSD), None) if self.moe is None else self.moe(normed_BSD)
        return x_BSD + F.dropout(mixed_BSD, self.dropout, self.training), stats
