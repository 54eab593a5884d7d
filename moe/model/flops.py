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

from moe.config.shape import router_learns

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


def dense_width(dense_hidden: int | None, *, top_k: int, n_shared_experts: int, expert_hidden: int) -> int:
    """Hidden width of a dense block's MLP: dense_hidden, or that of all experts that a token passes elsewhere."""
    return (top_k + n_shared_experts) * expert_hidden if dense_hidden is None else dense_hidden


def dense_width_of(settings: dict[str, Any]) -> int:
    """The same of a manifest's `model` section."""
    names = ("top_k", "n_shared_experts", "expert_hidden")
    return dense_width(settings["dense_hidden"], **{name: settings[name] for name in names})


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
    dense       MLPs of the first, dense layers
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
    dense: int
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
    qk_norm: bool | str = "head",
    tie_embeddings: bool = True,
    n_shared_experts: int = 0,
    first_k_dense_replace: int = 0,
    dense_hidden: int | None = None,
) -> ParameterCount:
    """Parameters of a Transformer of this shape (arguments as Transformer's)."""
    head_dim = d_model // n_heads if head_dim is None else head_dim
    width = dense_width(dense_hidden, top_k=top_k, n_shared_experts=n_shared_experts, expert_hidden=expert_hidden)
    sparse = n_layers - first_k_dense_replace
    embedding = vocab_size * d_model
    head = 0 if tie_embeddings else embedding
    attention = n_layers * d_model * head_dim * (2 * n_heads + 2 * n_kv_heads)
    router = sparse * n_experts * d_model
    expert = sparse * 3 * expert_hidden * d_model
    normed_heads = (n_heads + n_kv_heads if qk_norm == "full" else 2) if qk_norm else 0
    norms = n_layers * (2 * d_model + normed_heads * head_dim) + d_model
    shared = n_shared_experts * expert
    dense = first_k_dense_replace * 3 * width * d_model
    total = embedding + head + attention + router + n_experts * expert + shared + dense + norms
    return ParameterCount(
        total=total,
        active=total - (n_experts - top_k) * expert,
        embedding=embedding,
        head=head,
        attention=attention,
        router=router,
        experts=n_experts * expert,
        shared=shared,
        dense=dense,
        norms=norms,
    )


SIZES = tuple(inspect.signature(count_parameters).parameters)


def model_shape(settings: Any, vocab_size: int) -> dict[str, Any]:
    """What `count_parameters` and `flops_per_token` need to know of a dataclass with the model's settings."""
    fields = {field.name for field in dataclasses.fields(settings)}
    return {name: getattr(settings, name) for name in SIZES if name in fields} | {"vocab_size": vocab_size}


def experts_in_words(settings: Any) -> str:
    """`8 experts, top 2, 1 shared, 1 dense layer first` of an object with the model's settings."""
    chosen = {name: getattr(settings, name) for name in ("n_experts", "top_k", "norm_topk_prob")}
    constant = "" if router_learns(**chosen) else " (its weight is always 1: the loss teaches no router)"
    words = [f"{settings.n_experts} experts", f"top {settings.top_k}{constant}"]
    if settings.n_shared_experts:
        words.append(f"{settings.n_shared_experts} shared")
    if first := settings.first_k_dense_replace:
        words.append(f"{first} dense layer{'s' * (first > 1)} first")
    return ", ".join(words)


def flops_per_token(*, seq_len: int, **shape: Any) -> float:
    """FLOPs of forward and backward per token at sequence length seq_len, without recomputation. shape: that of
    `count_parameters`.
    """
    count = count_parameters(**shape)
    head_dim = shape.get("head_dim") or shape["d_model"] // shape["n_heads"]
    # A tied head is the embedding used as a matrix; untied, the embedding is only looked up.
    matrices = count.active - count.norms - (count.embedding if count.head else 0)
    return 6.0 * matrices + 6.0 * shape["n_layers"] * shape["n_heads"] * head_dim * seq_len
