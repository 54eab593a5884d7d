"""OLMoE: softmax, QK-norm over the full width, weights that are not divided by their sum.

- transformers' OLMoE divides where `norm_topk_prob` says so. vLLM's and llama.cpp's never do, so it counts as one that
  does not.
- `pad_token_id: null` is written: left out it means 1, and whoever trains the folder on leaves the embedding of token 1
  as it is.
"""

from __future__ import annotations

from typing import Any

from moe.model.families.family import WITHOUT_HEAD, Family, Read, Settings, head_width
from moe.model.families.qwen3 import SOFTMAX


def _to_keys(settings: Settings) -> dict[str, Any]:
    return {"head_dim": settings["head_dim"], "router_aux_loss_coef": settings.get("balance_loss") or 0.0}


def _from_keys(config: dict[str, Any]) -> Read:
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
    return {"head_dim": head_width(config), "n_kv_heads": ("num_key_value_heads", heads)}, []


def _also(settings: Settings) -> list[str]:
    width = settings["d_model"] / settings["n_heads"]
    if settings["head_dim"] == width:
        return []
    return [f"model.head_dim {width:g}, which is d_model / n_heads (is {settings['head_dim']})"]


def _engines(settings: Settings) -> list[str]:
    if settings["n_kv_heads"] == settings["n_heads"]:
        return []
    return [
        f"model.n_kv_heads ({settings['n_kv_heads']}): llama.cpp's OLMoE wants as many as n_heads "
        f"({settings['n_heads']}), so that it loads no GGUF of it"
    ]


OLMOE = Family(
    architecture="OlmoeForCausalLM",
    model_type="olmoe",
    has={"qk_norm": ("full",), **SOFTMAX, "norm_topk_prob": (False,), "first_k_dense_replace": (0,)},
    keys={
        **WITHOUT_HEAD,
        "norm_eps": ("rms_norm_eps", 1e-5),
        "n_experts": ("num_experts", 64),
        "top_k": ("num_experts_per_tok", 8),
        "expert_hidden": ("intermediate_size", None),
    },
    fixed={
        "hidden_act": ("silu", "silu"),
        "attention_bias": (False, False),
        "clip_qkv": (None, None),
        "norm_topk_prob": (False, False),
    },
    written={"output_router_logits": False, "pad_token_id": None},
    to_keys=_to_keys,
    from_keys=_from_keys,
    also=_also,
    engines=_engines,
)
