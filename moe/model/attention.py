"""Grouped-query attention.

- RMSNorm on every query and key head before RoPE keeps attention logits bounded (as Qwen3 has it).
- RoPE in the rotate-half convention of transformers (arXiv 2104.09864), so that weights move over unchanged. Its
  table is computed once per forward and shared by all layers; it is no buffer, so building on the meta device loses
  nothing.
- `mask` None means plain causal attention, which has kernels of its own.

B batch, S sequence, D width, H heads, G key-value heads, C channels of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe.model.norm import RMSNorm
from moe.model.precision import Linear


def rope_table(*, seq_len: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, each fp32 [S, C/2]."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequency = 1.0 / theta**exponent
    angle = torch.arange(seq_len, dtype=torch.float32, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def apply_rope(x_BSHC: Tensor, cos_SC2: Tensor, sin_SC2: Tensor) -> Tensor:
    """Turns channel i with channel i + C/2 by the position's angle."""
    cos, sin = cos_SC2[:, None], sin_SC2[:, None]
    a, b = x_BSHC.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(
        self, *, d_model: int, n_heads: int, n_kv_heads: int, head_dim: int, norm_eps: float, qk_norm: bool
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = Linear(d_model, n_heads * head_dim)
        self.k_proj = Linear(d_model, n_kv_heads * head_dim)
        self.v_proj = Linear(d_model, n_kv_heads * head_dim)
        self.o_proj = Linear(n_heads * head_dim, d_model)
        self.q_norm = RMSNorm(dim=head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim=head_dim, eps=norm_eps) if qk_norm else nn.Identity()

    def forward(self, x_BSD: Tensor, rope: tuple[Tensor, Tensor], mask_B1SS: Tensor | None) -> Tensor:
        heads = (*x_BSD.shape[:2], -1, self.head_dim)
        q_BSHC = apply_rope(self.q_norm(self.q_proj(x_BSD).view(heads)), *rope)
        k_BSGC = apply_rope(self.k_norm(self.k_proj(x_BSD).view(heads)), *rope)
        v_BSGC = self.v_proj(x_BSD).view(heads)
        out_BHSC = F.scaled_dot_product_attention(
            q_BSHC.transpose(1, 2),
            k_BSGC.transpose(1, 2),
            v_BSGC.transpose(1, 2),
            attn_mask=mask_B1SS,
            is_causal=mask_B1SS is None,
            enable_gqa=q_BSHC.shape[2] != k_BSGC.shape[2],
        )
        return self.o_proj(out_BHSC.transpose(1, 2).flatten(2))
