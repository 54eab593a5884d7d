"""Dense Qwen3. The router of a single expert gives it weight 1 whatever it holds, so it is left out."""

from __future__ import annotations

from moe.config.balance import WITHOUT_BIAS
from moe.model.families.family import COMMON_KEYS, COMMON_NAMES, Family

SOFTMAX = {
    "scoring_func": ("softmax",),
    "routed_scaling_factor": (1.0,),
    "balance": WITHOUT_BIAS,
    "n_shared_experts": (0,),
    "partial_rotary_factor": (1.0,),
}

QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    has={"qk_norm": ("head",), **SOFTMAX, "first_k_dense_replace": (0,)},
    keys={**COMMON_KEYS, "expert_hidden": ("intermediate_size", None)},
    fixed={"hidden_act": ("silu", "silu"), "attention_bias": (False, False), "use_sliding_window": (False, False)},
    written={"sliding_window": None},
    dense=True,
    names={**COMMON_NAMES, "moe.router.weight": None},
    experts="mlp",
)
