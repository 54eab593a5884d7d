"""What transformers' Qwen3MoeForCausalLM computes, and where dense Qwen3ForCausalLM: what can be exported.

Pure Python: the export refuses by it, and `moe check` before anything is trained.
"""

from __future__ import annotations

from typing import Any

# setting -> the values that these architectures have
EXPRESSIBLE: dict[str, tuple[Any, ...]] = {
    "qk_norm": (True,),
    "scoring_func": ("softmax",),
    "routed_scaling_factor": (1.0,),
    "n_shared_experts": (0,),
    "partial_rotary_factor": (1.0,),
    "balance": ("loss",),  # the others add a bias to the choice
}


def hindrances(settings: dict[str, Any]) -> list[str]:
    """Why a model of these settings (a manifest's `model` section) has no counterpart; none where it has one."""
    return [
        f"model.{name} ({_shown(settings[name])}) has no counterpart in transformers' Qwen3MoeForCausalLM, which is as "
        f"{_shown(values[0])}"
        for name, values in EXPRESSIBLE.items()
        if name in settings and settings[name] not in values
    ]


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
