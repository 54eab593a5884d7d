"""Mixtral: softmax over the chosen experts, no QK-norm."""

from __future__ import annotations

from typing import Any

from moe.model.families.family import COMMON_NAMES, WITHOUT_HEAD, Family, Read, Settings, head_width
from moe.model.families.qwen3 import SOFTMAX


def _to_keys(settings: Settings) -> dict[str, Any]:
    return {"head_dim": settings["head_dim"], "router_aux_loss_coef": settings.get("balance_loss") or 0.0}


def _from_keys(config: dict[str, Any]) -> Read:
    return {"head_dim": head_width(config)}, []


MIXTRAL = Family(
    architecture="MixtralForCausalLM",
    model_type="mixtral",
    has={"qk_norm": (False,), **SOFTMAX, "norm_topk_prob": (True,), "first_k_dense_replace": (0,)},
    keys={
        **WITHOUT_HEAD,
        "norm_eps": ("rms_norm_eps", 1e-5),
        "n_experts": ("num_local_experts", 8),
        "top_k": ("num_experts_per_tok", 2),
        "expert_hidden": ("intermediate_size", None),
    },
    fixed={"hidden_act": ("silu", "silu"), "sliding_window": (None, None)},
    written={"output_router_logits": False, "router_jitter_noise": 0.0},
    to_keys=_to_keys,
    from_keys=_from_keys,
    names={**COMMON_NAMES, "moe.router.weight": "block_sparse_moe.gate.weight"},
    experts="block_sparse_moe.experts.{}",
    projections=("w1", "w3", "w2"),
    rope_theta=1e6,
)
