"""GLM-4.5: sigmoid scores, an expert bias, shared experts, weights scaled, dense layers first, RoPE on a part.

- A missing shared expert is written as one of zeros: `n_shared_experts: 0` is right in transformers and silently wrong
  in llama.cpp. The bias is written even where it is none.
- The share of channels that RoPE turns stands at the top, where transformers 4 reads it, and in rope_parameters.
- `num_nextn_predict_layers: 0`: engines would look for a layer of multi-token prediction.
"""

from __future__ import annotations

from typing import Any

from moe.config.balance import WITH_BIAS, WITHOUT_BIAS
from moe.model.families.family import COMMON_KEYS, COMMON_NAMES, Family, Read, Settings
from moe.model.flops import dense_width_of


def _to_keys(settings: Settings) -> dict[str, Any]:
    return {
        "n_shared_experts": max(1, settings["n_shared_experts"]),
        "use_qk_norm": settings["qk_norm"] == "head",
        "partial_rotary_factor": settings["partial_rotary_factor"],
        "intermediate_size": dense_width_of(settings),
    }


def _from_keys(config: dict[str, Any]) -> Read:
    errors = []
    uses = config.get("use_qk_norm", False)
    if not isinstance(uses, bool):
        errors.append(f"use_qk_norm ({uses!r}): must be true or false")
    rope = config.get("rope_parameters")
    inside = rope.get("partial_rotary_factor") if isinstance(rope, dict) else None
    share = config.get("partial_rotary_factor", 0.5 if inside is None else inside)
    if inside not in (None, share):
        errors.append(f"partial_rotary_factor ({share!r}): must be {inside!r}, as in rope_parameters")
    first = config.get("first_k_dense_replace", 1)
    found = {
        "qk_norm": ("use_qk_norm", "head" if uses else False),
        "partial_rotary_factor": ("partial_rotary_factor", share),
    }
    if first:
        found["dense_hidden"] = ("intermediate_size", config.get("intermediate_size"))
    return found, errors


GLM4_MOE = Family(
    architecture="Glm4MoeForCausalLM",
    model_type="glm4_moe",
    has={
        "scoring_func": ("sigmoid",),
        "qk_norm": ("head", False),
        "balance": (*WITH_BIAS, *WITHOUT_BIAS),
    },
    keys={
        **COMMON_KEYS,
        "norm_eps": ("rms_norm_eps", 1e-5),
        "n_experts": ("n_routed_experts", 128),
        "top_k": ("num_experts_per_tok", 8),
        "expert_hidden": ("moe_intermediate_size", 1408),
        "n_shared_experts": ("n_shared_experts", 1),
        "first_k_dense_replace": ("first_k_dense_replace", 1),
        "routed_scaling_factor": ("routed_scaling_factor", 1.0),
        "norm_topk_prob": ("norm_topk_prob", True),
    },
    fixed={
        "hidden_act": ("silu", "silu"),
        "attention_bias": (False, False),
        "n_group": (1, 1),
        "topk_group": (1, 1),
        "num_nextn_predict_layers": (0, 0),
    },
    written={
        "output_router_logits": False,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
    to_keys=_to_keys,
    from_keys=_from_keys,
    names={**COMMON_NAMES, "moe.router.bias_E": "mlp.gate.e_score_correction_bias"},
    zeros=("moe.router.bias_E", "moe.shared.w13", "moe.shared.w2"),
)
