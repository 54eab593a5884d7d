"""What must hold between the sizes of a model, whether a config names them or a script builds a Transformer."""

from __future__ import annotations

import inspect

from moe.config.balance import BALANCE_RULES, BalanceName
from moe.config.bounds import DIMENSIONS, brief


def shape_errors(
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    n_experts: int,
    top_k: int,
    head_dim: int | None,
    qk_norm: bool | str,
    partial_rotary_factor: float,
    balance: BalanceName,
    first_k_dense_replace: int,
) -> list[str]:
    """Every error of these settings, none where they fit; each dimension is at least 1."""
    errors = []
    if top_k > n_experts:
        errors.append(f"model.top_k ({top_k}) exceeds model.n_experts ({n_experts}); lower top_k")
    if top_k < 1:
        errors.append(f"model.top_k ({top_k}) must be at least 1")
    if BALANCE_RULES[balance].bins and top_k == n_experts:
        errors.append(
            f"model.balance ({balance}) needs model.top_k ({top_k}) below model.n_experts ({n_experts}); "
            "where every token passes all experts, use loss with model.balance_loss 0"
        )
    if first_k_dense_replace >= n_layers:
        errors.append(
            f"model.first_k_dense_replace ({first_k_dense_replace}) leaves no layer of experts of "
            f"model.n_layers ({n_layers}); lower it, or for a dense model set model.n_experts=1"
        )
    if qk_norm not in (True, False, "head", "full"):
        errors.append(f"model.qk_norm ({brief(qk_norm)}) must be head, full or false")
    if n_heads % n_kv_heads:
        errors.append(
            f"model.n_heads ({n_heads}) is not divisible by model.n_kv_heads ({n_kv_heads}); use a divisor of n_heads"
        )
    if head_dim is None and d_model % n_heads:
        errors.append(
            f"model.d_model ({d_model}) is not divisible by model.n_heads ({n_heads}); "
            "change one, or set model.head_dim"
        )
    source = "" if head_dim is not None else ", which is model.d_model / model.n_heads,"
    width = d_model // n_heads if head_dim is None else head_dim
    if not 2 <= width <= DIMENSIONS["d_model"] or width % 2:
        errors.append(f"model.head_dim ({brief(width)}){source} must be an even number from 2 for rotary embeddings")
    elif 0 < partial_rotary_factor <= 1:
        turned = int(width * partial_rotary_factor)
        if turned < 2 or turned % 2:
            errors.append(
                f"model.partial_rotary_factor ({partial_rotary_factor:g}) of a head's {width} channels makes "
                f"{turned}; it must be an even number of them from 2"
            )
    return errors


def router_learns(*, n_experts: int, top_k: int, norm_topk_prob: bool) -> bool:
    """Whether the loss of the tokens reaches the router, where there is a choice: the weight of one expert alone,
    divided by itself, is 1 whatever the router says. No error, as runs that have it go on.
    """
    return n_experts == 1 or top_k > 1 or not norm_topk_prob


SHAPE = tuple(inspect.signature(shape_errors).parameters)
