"""Granite-MoE, read only: its four multipliers are folded into weights, and no model here is exported as one.

- Softmax over the chosen experts, no QK-norm; the matrices of all experts of a layer stand in one tensor.
- `embedding_multiplier` goes into the embedding, `logits_scaling` into the head, which is untied where either is not 1.
- `attention_multiplier` stands in the place of 1 / sqrt(head_dim): their quotient goes into q_proj.
- `residual_multiplier` goes into what writes to the residual stream, o_proj and w2.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from moe.model.families.family import COMMON_NAMES, WITHOUT_HEAD, Family, Read, head_width
from moe.model.families.qwen3 import SOFTMAX

MULTIPLIERS = ("embedding_multiplier", "logits_scaling", "attention_multiplier", "residual_multiplier")


def _from_keys(config: dict[str, Any]) -> Read:
    errors = [
        f"{key} ({config[key]!r}): must be a number above 0, at most 1e6"
        for key in MULTIPLIERS
        if key in config and not _is_multiplier(config[key])
    ]
    tied = config.get("tie_word_embeddings", False)
    if not errors and tied is True and _untied(config):
        tied = False
    return {"head_dim": head_width(config), "tie_embeddings": ("tie_word_embeddings", tied)}, errors


def _is_multiplier(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1e6


def _untied(config: dict[str, Any]) -> bool:
    return config.get("embedding_multiplier", 1.0) != 1 or config.get("logits_scaling", 1.0) != 1


def _folded(config: dict[str, Any]) -> Family:
    """The family with this model's multipliers."""
    embedding, logits, attention, residual = (config.get(key, 1.0) for key in MULTIPLIERS)
    scales = {
        "embed.weight": embedding,
        "lm_head.weight": 1 / logits,
        "attn.q_proj.weight": attention * head_width(config)[1] ** 0.5,
        "attn.o_proj.weight": residual,
        "moe.w2": residual,
    }
    shared = {"lm_head.weight": "model.embed_tokens.weight"} if config.get("tie_word_embeddings", False) else {}
    return dataclasses.replace(GRANITE_MOE, scales=scales, names={**GRANITE_MOE.names, **shared})


GRANITE_MOE = Family(
    architecture="GraniteMoeForCausalLM",
    model_type="granitemoe",
    has={"qk_norm": (False,), **SOFTMAX, "norm_topk_prob": (True,), "first_k_dense_replace": (0,)},
    keys={
        **WITHOUT_HEAD,
        "n_experts": ("num_local_experts", 8),
        "top_k": ("num_experts_per_tok", 2),
        "expert_hidden": ("intermediate_size", None),
    },
    fixed={
        "hidden_act": ("silu", "silu"),
        "attention_bias": (False, False),
        "position_embedding_type": ("rope", "rope"),
    },
    from_keys=_from_keys,
    folded=_folded,
    names={
        **COMMON_NAMES,
        "moe.router.weight": "block_sparse_moe.router.layer.weight",
        "moe.w13": "block_sparse_moe.input_linear.weight",
        "moe.w2": "block_sparse_moe.output_linear.weight",
    },
)
