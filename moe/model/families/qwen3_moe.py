"""Qwen3-MoE: softmax, QK-norm on each head, dense layers where `mlp_only_layers` names them.

transformers 4 reads `num_experts`, 5 `num_local_experts`: both are written, and must be equal.
"""

from __future__ import annotations

from typing import Any

from moe.model.families.family import COMMON_KEYS, Family, Read, Settings
from moe.model.families.qwen3 import QWEN3, SOFTMAX
from moe.model.flops import dense_width_of


def _to_keys(settings: Settings) -> dict[str, Any]:
    return {
        "mlp_only_layers": list(range(settings["first_k_dense_replace"])),
        "intermediate_size": dense_width_of(settings),
        "num_experts": settings["n_experts"],
        "num_local_experts": settings["n_experts"],
        "router_aux_loss_coef": settings.get("balance_loss") or 0.0,
    }


def _from_keys(config: dict[str, Any]) -> Read:
    experts = "num_experts" if "num_experts" in config else "num_local_experts"
    errors = []
    if (local := config.get("num_local_experts", config.get(experts))) != config.get(experts):
        errors.append(f"{experts} ({config[experts]!r}): must be num_local_experts ({local!r})")
    listed = [] if config.get("mlp_only_layers") is None else config["mlp_only_layers"]
    first = len(listed) if isinstance(listed, list) else -1
    if first < 0 or listed != list(range(first)):
        errors.append(f"mlp_only_layers ({listed}): must be the first layers, as [] or [0, 1]")
        first = 0
    found = {"n_experts": (experts, config.get(experts))}
    if first:
        found["first_k_dense_replace"] = ("first_k_dense_replace", first)
        found["dense_hidden"] = ("intermediate_size", config.get("intermediate_size"))
    return found, errors


def _engines(settings: Settings) -> list[str]:
    notes = []
    if first := settings["first_k_dense_replace"]:
        notes.append(
            f"model.first_k_dense_replace ({first}): llama.cpp's Qwen3-MoE has no dense layers: there is no GGUF of it"
        )
    if not settings["norm_topk_prob"]:
        notes.append("model.norm_topk_prob (false): llama.cpp's Qwen3-MoE always divides by the sum, and answers wrong")
    return notes


QWEN3_MOE = Family(
    architecture="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    has={"qk_norm": ("head",), **SOFTMAX},
    keys={
        **COMMON_KEYS,
        "top_k": ("num_experts_per_tok", None),
        "expert_hidden": ("moe_intermediate_size", None),
        "norm_topk_prob": ("norm_topk_prob", False),
    },
    fixed={**QWEN3.fixed, "decoder_sparse_step": (1, 1)},
    written={"sliding_window": None, "output_router_logits": False},
    to_keys=_to_keys,
    from_keys=_from_keys,
    engines=_engines,
)
