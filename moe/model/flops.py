"""Exact parameter counts and FLOPs per token, from the shape alone: no module is built.

- Active parameters are those one token meets: top_k of n_experts experts, everything else.
- FLOPs are those of matrix products, 2 per multiply-add, times 3 for forward and backward (the backward is two
  products for each forward one): 6 per active matrix weight (the embedding's lookup is none, the head is one), and
  for causal attention, of which half the scores are needed, 6 * n_layers * n_heads * head_dim * seq_len.
"""

import dataclasses
import inspect
import re
from typing import Any, NamedTuple

# Peak of dense bf16 products with fp32 accumulation, in TFLOP/s, from NVIDIA's data sheets (which print twice as much
# where they count sparsity). A name is looked for as words in the device's; the first that fits counts.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A40": 150.0,
    "A10": 125.0,
    "RTX A6000": 155.0,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 4080": 97.5,
    "RTX 3090": 71.2,
    "RTX 3080": 59.5,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by the name its driver gives it; None where it is not known."""
    for name, tflops in PEAK_TFLOPS.items():
        if re.search(rf"\b{name}\b(?! (Ti|D|Laptop|SUPER)\b)", device_name):
            return tflops * 1e12
    return None


class ParameterCount(NamedTuple):
    """Numbers of parameters. total and active are sums over the parts; a tied head is counted once, as embedding.

    total       all
    active      those one token meets: total less the experts it does not take
    embedding   embedding matrix
    head        head matrix; 0 when tied
    attention   q, k, v and o projections
    router      routers
    experts     all experts that are chosen
    shared      shared experts
    norms       norm weights
    """

    total: int
    active: int
    embedding: int
    head: int
    attention: int
    router: int
    experts: int
    shared: int
    norms: int


def count_parameters(
    *,
    vocab_size: int,
    d_model: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    n_experts: int,
    top_k: int,
    expert_hidden: int,
    head_dim: int | None = None,
    qk_norm: bool = True,
    tie_embeddings: bool = True,
    n_shared_experts: int = 0,
) -> ParameterCount:
    """Parameters of a Transformer of this shape (arguments as Transformer's)."""
    head_dim = d_model // n_heads if head_dim is None else head_dim
    embedding = vocab_size * d_model
    head = 0 if tie_embeddings else embedding
    attention = n_layers * d_model * head_dim * (2 * n_heads + 2 * n_kv_heads)
    router = n_layers * n_experts * d_model
    expert = n_layers * 3 * expert_hidden * d_model
    norms = n_layers * (2 * d_model + (2 * head_dim if qk_norm else 0)) + d_model
    shared = n_shared_experts * expert
    total = embedding + head + attention + router + n_experts * expert + shared + norms
    return ParameterCount(
        total=total,
        active=total - (n_experts - top_k) * expert,
        embedding=embedding,
        head=head,
        attention=attention,
        router=router,
        experts=n_experts * expert,
        shared=shared,
        norms=norms,
    )


def model_shape(settings: Any, vocab_size: int) -> dict[str, Any]:
    """What `count_parameters` and `flops_per_token` need to know of a dataclass with the model's settings."""
    names = inspect.signature(count_parameters).parameters
    return {k: v for k, v in dataclasses.asdict(settings).items() if k in names} | {"vocab_size": vocab_size}


def flops_per_token(
    *,
    vocab_size: int,
    d_model: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    n_experts: int,
    top_k: int,
    expert_hidden: int,
    seq_len: int,
    head_dim: int | None = None,
    qk_norm: bool = True,
    tie_embeddings: bool = True,
    n_shared_experts: int = 0,
) -> float:
    """FLOPs of forward and backward per token at sequence length seq_len, without recomputation."""
    head_dim = d_model // n_heads if head_dim is None else head_dim
    count = count_parameters(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        n_experts=n_experts,
        top_k=top_k,
        expert_hidden=expert_hidden,
        head_dim=head_dim,
        qk_norm=qk_norm,
        tie_embeddings=tie_embeddings,
        n_shared_experts=n_shared_experts,
    )
    # A tied head is the embedding used as a matrix; untied, the embedding is only looked up.
    matrices = count.active - count.norms - (0 if tie_embeddings else count.embedding)
    return 6.0 * matrices + 6.0 * n_layers * n_heads * head_dim * seq_len
