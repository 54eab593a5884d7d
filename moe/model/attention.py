"""Grouped-query attention.

- RMSNorm on queries and keys before RoPE keeps attention logits bounded: on each head (as Qwen3 has it) or on all heads
  at once, with as many weights as channels (as OLMoE has it).
- RoPE in the rotate-half convention of transformers (arXiv 2104.09864), so that weights move over unchanged. Its
  table is computed once per forward and shared by all layers; it is no buffer, so building on the meta device loses
  nothing.
- `documents` None means plain causal attention, which has kernels of its own; a mask or lengths keep packed documents
  apart.
- Generation hands in a `KVCache`: the prompt in one pass, then one token at a time. Training hands in none and pays
  nothing for it.
- What a kernel takes as a truth value (`enable_gqa`, `is_causal`) comes from the module and the caller, never from
  comparing sizes: where torch.compile takes these for dynamic, the result is none, and torch 2.7 refuses it.
- Given a mask, the CPU kernel computes the future too, only to hide it. Block after block of queries, against the
  keys up to the block's end, costs 0.7 (512 tokens) to 0.6 (2,048) of that, forward and backward.
- Given a mask, no fused kernel on a GPU takes grouped heads: flash attention takes no mask, the memory-efficient kernel
  as many key-value heads as query heads. What is left keeps all scores. So there each group's keys and values are
  repeated for its heads.

B batch, S sequence, D width, H heads, G key-value heads, C channels of a head.
"""

import functools
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe.model.documents import Packed
from moe.model.norm import RMSNorm
from moe.model.precision import Linear

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    VARLEN_ARGUMENTS: frozenset[str] = frozenset()
else:
    VARLEN_ARGUMENTS = frozenset(inspect.signature(varlen_attn).parameters)
HAS_VARLEN = "window_size" in VARLEN_ARGUMENTS  # torch 2.10 has it with other arguments
VARLEN_TAKES_GROUPS = "enable_gqa" in VARLEN_ARGUMENTS  # torch 2.11 sees it; later ones refuse without it

CPU_QUERY_BLOCK = 128


def rope_table(*, seq_len: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, each fp32 [S, C/2]."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequency = 1.0 / theta**exponent
    angle = torch.arange(seq_len, dtype=torch.float32, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def apply_rope(x_BSHC: Tensor, cos_SC2: Tensor, sin_SC2: Tensor) -> Tensor:
    """Turns channel i with channel i + C/2 by the position's angle, of the first C channels; those after them stay.

    The table may be each row's own, [B, S, C/2].
    """
    turned = 2 * cos_SC2.shape[-1]
    if turned < x_BSHC.shape[-1]:
        return torch.cat((apply_rope(x_BSHC[..., :turned], cos_SC2, sin_SC2), x_BSHC[..., turned:]), dim=-1)
    cos, sin = cos_SC2[..., None, :], sin_SC2[..., None, :]
    a, b = x_BSHC.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attend(
    q_BHSC: Tensor, k_BGSC: Tensor, v_BGSC: Tensor, mask_B1SS: Tensor | None, *, grouped: bool, causal: bool = True
) -> Tensor:
    """Causal attention, within mask_B1SS where there is one: [B, S, H, C]. The mask counts cached keys, too.

    grouped: H is more than G. causal: False where the queries may see all keys, as the last token alone may.
    """
    if grouped and mask_B1SS is not None and q_BHSC.device.type == "cuda":
        k_BGSC, v_BGSC, grouped = each_head(k_BGSC, q_BHSC), each_head(v_BGSC, q_BHSC), False
    attention = functools.partial(F.scaled_dot_product_attention, enable_gqa=grouped)
    if mask_B1SS is None:
        return attention(q_BHSC, k_BGSC, v_BGSC, is_causal=causal).transpose(1, 2)
    seq_len = q_BHSC.shape[2]
    cached = k_BGSC.shape[2] - seq_len
    block = CPU_QUERY_BLOCK if q_BHSC.device.type == "cpu" else seq_len
    outputs = []
    for start in range(0, seq_len, block):
        end = min(start + block, seq_len)
        seen = cached + end
        mask = mask_B1SS[:, :, start:end, :seen]
        out = attention(q_BHSC[:, :, start:end], k_BGSC[:, :, :seen], v_BGSC[:, :, :seen], attn_mask=mask)
        outputs.append(out.transpose(1, 2))
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


def each_head(kv_BGSC: Tensor, q_BHSC: Tensor) -> Tensor:
    """Keys or values of each query head: [B, H, S, C]."""
    return kv_BGSC.repeat_interleave(q_BHSC.shape[1] // kv_BGSC.shape[1], dim=1)


def has_varlen(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `attend_packed` runs there: flash attention's terms."""
    if not HAS_VARLEN or device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and head_dim % 8 == 0 and head_dim <= 256


def attend_packed(q_BSHC: Tensor, k_BSGC: Tensor, v_BSGC: Tensor, documents: Packed, *, grouped: bool) -> Tensor:
    """Causal attention within each document: [B, S, H, C]. grouped: H is more than G."""
    starts_N, longest = documents
    q_THC, k_TGC, v_TGC = (x.flatten(0, 1) for x in (q_BSHC, k_BSGC, v_BSGC))
    causal = (-1, 0)
    groups: dict[str, Any] = {"enable_gqa": grouped} if VARLEN_TAKES_GROUPS else {}
    out_THC = varlen_attn(q_THC, k_TGC, v_TGC, starts_N, starts_N, longest, longest, window_size=causal, **groups)
    assert isinstance(out_THC, Tensor)  # with return_aux it would be two
    return out_THC.view(q_BSHC.shape)


class KVCache:
    """One layer's keys and values of the tokens seen so far, each [B, G, S, C]."""

    def __init__(self) -> None:
        self.k_BGSC: Tensor | None = None
        self.v_BGSC: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.k_BGSC is None else self.k_BGSC.shape[2]

    def append(self, k_BGSC: Tensor, v_BGSC: Tensor) -> tuple[Tensor, Tensor]:
        """Takes those of new tokens and returns all. After the first call only one token at a time."""
        if self.k_BGSC is not None and self.v_BGSC is not None:
            assert k_BGSC.shape[2] == 1, "several new tokens would need a mask of their own"
            k_BGSC, v_BGSC = torch.cat((self.k_BGSC, k_BGSC), dim=2), torch.cat((self.v_BGSC, v_BGSC), dim=2)
        self.k_BGSC, self.v_BGSC = k_BGSC, v_BGSC
        return k_BGSC, v_BGSC


class Attention(nn.Module):
    def __init__(
        self, *, d_model: int, n_heads: int, n_kv_heads: int, head_dim: int, norm_eps: float, qk_norm: bool | str
    ) -> None:
        """qk_norm: see Transformer."""
        super().__init__()
        self.grouped = n_heads != n_kv_heads
        self.head_dim = head_dim
        self.q_proj = Linear(d_model, n_heads * head_dim)
        self.k_proj = Linear(d_model, n_kv_heads * head_dim)
        self.v_proj = Linear(d_model, n_kv_heads * head_dim)
        self.o_proj = Linear(n_heads * head_dim, d_model)
        self.full_norm = qk_norm == "full"
        heads = (n_heads, n_kv_heads) if self.full_norm else (1, 1)
        self.q_norm, self.k_norm = (
            RMSNorm(dim=number * head_dim, eps=norm_eps) if qk_norm else nn.Identity() for number in heads
        )

    def forward(
        self,
        x_BSD: Tensor,
        rope: tuple[Tensor, Tensor],
        documents: Tensor | Packed | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """documents: an additive mask [B, 1, S, S], lengths for varlen attention, or None without documents."""
        heads = (*x_BSD.shape[:2], -1, self.head_dim)
        if self.full_norm:
            q_BSHC = self.q_norm(self.q_proj(x_BSD)).view(heads)
            k_BSGC = self.k_norm(self.k_proj(x_BSD)).view(heads)
        else:
            q_BSHC = self.q_norm(self.q_proj(x_BSD).view(heads))
            k_BSGC = self.k_norm(self.k_proj(x_BSD).view(heads))
        q_BSHC, k_BSGC = apply_rope(q_BSHC, *rope), apply_rope(k_BSGC, *rope)
        v_BSGC = self.v_proj(x_BSD).view(heads)
        if isinstance(documents, Packed):
            out_BSHC = attend_packed(q_BSHC, k_BSGC, v_BSGC, documents, grouped=self.grouped)
        else:
            k_BGSC, v_BGSC = k_BSGC.transpose(1, 2), v_BSGC.transpose(1, 2)
            first = cache is None or cache.length == 0  # after it the last token comes alone
            if cache is not None:
                k_BGSC, v_BGSC = cache.append(k_BGSC, v_BGSC)
            q_BHSC = q_BSHC.transpose(1, 2)
            out_BSHC = attend(q_BHSC, k_BGSC, v_BGSC, documents, grouped=self.grouped, causal=first)
        return self.o_proj(out_BSHC.flatten(2))
