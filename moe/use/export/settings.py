"""The `model` section of our configuration and transformers' config.json, both ways.

- Written here, not by transformers: 4.57 cannot read what 5.x writes. Both read this, which holds `num_experts` and
  `num_local_experts`, `rope_theta` and `rope_parameters`, and states what either takes a default for.
- Read with the defaults of transformers, so that a key that is absent means here what it means there. Every key that
  asks for something this model does not have is named, all at once.
"""

from __future__ import annotations

from typing import Any

from moe.common.errors import InputError
from moe.model.families import hindrances

MOE, DENSE = "Qwen3MoeForCausalLM", "Qwen3ForCausalLM"
MODEL_TYPES = {MOE: "qwen3_moe", DENSE: "qwen3"}
# our name -> (transformers' name, transformers' default; None: must be there)
NAMES: dict[str, tuple[str, Any]] = {
    "d_model": ("hidden_size", None),
    "n_layers": ("num_hidden_layers", None),
    "n_heads": ("num_attention_heads", None),
    "n_kv_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
}
# Kind, largest value and its words; every other number is an integer of at least 1.
NUMBERS: dict[str, tuple[Any, float, str]] = {
    "rms_norm_eps": ((int, float), 1, "a number above 0, at most 1"),
    "rope_theta": ((int, float), 1e12, "a number above 0, at most 1e12"),
}
# What this model has, and what an absent key means to transformers.
FIXED: dict[str, tuple[Any, Any]] = {
    "hidden_act": ("silu", "silu"),
    "attention_bias": (False, False),
    "use_sliding_window": (False, False),
}
FIXED_MOE: dict[str, tuple[Any, Any]] = {
    "decoder_sparse_step": (1, 1),
    "mlp_only_layers": ([], []),
}
# Parts of other families: nothing but an absent, null, zero or empty value will do.
FOREIGN = (
    "attn_logit_softcapping",
    "expert_bias",
    "final_logit_softcapping",
    "first_k_dense_replace",
    "mlp_bias",
    "moe_router_enable_expert_bias",
    "n_shared_experts",
    "num_shared_experts",
    "quantization_config",
    "routed_scaling_factor",
    "scoring_func",
    "shared_expert_intermediate_size",
)


def to_config(settings: dict[str, Any], *, vocab_size: int, max_seq_len: int, special: dict[str, int]) -> dict:
    """config.json for a model of these settings (a manifest's `model` section). special: bos_token_id and the like.

    Raises:
        InputError: the model has no counterpart in transformers.
    """
    if found := hindrances(settings):
        raise InputError("; ".join(found) + "; a model that is to be exported needs these")
    dense = settings["n_experts"] == 1
    architecture = DENSE if dense else MOE
    settings = {**settings, "head_dim": settings["head_dim"] or settings["d_model"] // settings["n_heads"]}
    config = {
        "architectures": [architecture],
        "model_type": MODEL_TYPES[architecture],
        "vocab_size": vocab_size,
        "max_position_embeddings": max_seq_len,
        **{theirs: settings[ours] for ours, (theirs, _) in NAMES.items()},
        **{key: value for key, (value, _) in FIXED.items()},
        "intermediate_size": settings["top_k"] * settings["expert_hidden"],
        "rope_theta": settings["rope_theta"],
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": settings["rope_theta"]},
        "sliding_window": None,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float32",
        **special,
    }
    if dense:
        return config
    return {
        **config,
        **{key: value for key, (value, _) in FIXED_MOE.items()},
        "norm_topk_prob": settings.get("norm_topk_prob", True),
        "moe_intermediate_size": settings["expert_hidden"],
        "num_experts": settings["n_experts"],
        "num_local_experts": settings["n_experts"],
        "num_experts_per_tok": settings["top_k"],
        "output_router_logits": False,
        "router_aux_loss_coef": settings.get("balance_loss", 0.0),
    }


def from_config(config: dict[str, Any], source: str) -> dict[str, Any]:
    """Our `model` section for a config.json.

    Raises:
        InputError: names every key by which the model differs from ours, with its value and the one it would need.
    """
    listed = config.get("architectures")
    architecture = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else None
    faults = []
    if architecture not in MODEL_TYPES:
        faults.append(f"architectures ({listed}): must be a {MOE} or, dense, a {DENSE}")
    elif config.get("model_type") != MODEL_TYPES[architecture]:
        faults.append(f"model_type ({config.get('model_type')!r}): must be {MODEL_TYPES[architecture]}")
    fixed = FIXED if architecture == DENSE else {**FIXED, **FIXED_MOE}
    for key, (wanted, default) in fixed.items():
        found = config.get(key, default)
        if (type(found) is not type(wanted) or found != wanted) and (found is not None or wanted):
            faults.append(f"{key} ({found}): must be {wanted}")  # null stands for [] and for false
    faults += [f"{key} ({config[key]}): is not supported" for key in FOREIGN if config.get(key)]
    ropes = {key: config.get(key) for key in ("rope_parameters", "rope_scaling")}
    faults += [f"{k} ({v!r}): must be an object or null" for k, v in ropes.items() if not isinstance(v, dict | None)]
    rope: dict[str, Any] = next((value for value in ropes.values() if value and isinstance(value, dict)), {})
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        faults.append(f"rope_type ({kind}): must be default")
    if (share := rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))) != 1.0:
        faults.append(f"partial_rotary_factor ({share}): must be 1.0")
    values = {ours: (theirs, config.get(theirs, default)) for ours, (theirs, default) in NAMES.items()}
    values["rope_theta"] = ("rope_theta", rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    theta = values["rope_theta"][1]
    if "rope_theta" in rope and config.get("rope_theta") not in (None, theta):  # transformers 4 reads this, 5 the other
        faults.append(f"rope_theta ({config['rope_theta']!r}): must be {theta!r}, as beside rope_type")
    if architecture == DENSE:
        values["expert_hidden"] = ("intermediate_size", config.get("intermediate_size"))
    else:
        experts = "num_experts" if "num_experts" in config else "num_local_experts"
        values |= {
            "n_experts": (experts, config.get(experts)),
            "top_k": ("num_experts_per_tok", config.get("num_experts_per_tok")),
            "expert_hidden": ("moe_intermediate_size", config.get("moe_intermediate_size")),
            "norm_topk_prob": ("norm_topk_prob", config.get("norm_topk_prob", False)),
        }
        local = config.get("num_local_experts", config.get(experts))
        if local != config.get(experts):  # transformers 4 reads the one, 5 the other
            faults.append(f"{experts} ({config[experts]!r}): must be num_local_experts ({local!r})")
    found_values = dict(values.values()) | {
        "vocab_size": config.get("vocab_size"),
        "max_position_embeddings": config.get("max_position_embeddings", 2048),
    }
    faults += [fault for key, value in found_values.items() if (fault := _value_error(key, value))]
    settings = {"n_experts": 1, "top_k": 1} | {ours: value for ours, (_, value) in values.items()}
    if not faults:
        faults = _errors_between(settings, config)
    if faults:
        raise InputError(
            f"{source}: is not a model of this family; its config.json differs:\n"
            + "\n".join(f"  {fault[:300]}" for fault in faults)
        )
    if settings["head_dim"] == settings["d_model"] // settings["n_heads"]:
        settings["head_dim"] = None  # as a yaml has it, whose value a run compares with this one
    return {**settings, "rope_theta": float(settings["rope_theta"]), "qk_norm": True}


def _value_error(key: str, value: Any) -> str | None:
    """What is wrong with a value of config.json by itself, None where nothing is."""
    if value is None:
        return f"{key}: is missing"
    if key in ("tie_word_embeddings", "norm_topk_prob"):
        return None if isinstance(value, bool) else f"{key} ({value!r}): must be true or false"
    kinds, most, wanted = NUMBERS.get(key, (int, 10**12, "an integer of at least 1"))
    if isinstance(value, kinds) and not isinstance(value, bool) and 0 < value <= most:
        return None
    return f"{key} ({value!r}): must be {wanted}"


def _errors_between(settings: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Values that are good each and do not go together."""
    faults, layer_types = [], config.get("layer_types")
    if settings["head_dim"] % 2:
        faults.append(f"head_dim ({settings['head_dim']}): must be even")
    if settings["n_heads"] % settings["n_kv_heads"]:
        faults.append(
            f"num_key_value_heads ({settings['n_kv_heads']}): must divide num_attention_heads ({settings['n_heads']})"
        )
    if settings["top_k"] > settings["n_experts"]:
        faults.append(
            f"num_experts_per_tok ({settings['top_k']}): must be at most num_experts ({settings['n_experts']})"
        )
    pad, rows = config.get("pad_token_id"), config["vocab_size"]
    if pad is not None and (type(pad) is not int or not -rows <= pad < rows):
        faults.append(f"pad_token_id ({pad!r}): must be null or an integer below vocab_size ({rows})")
    wanted = ["full_attention"]
    if layer_types is not None and (
        not isinstance(layer_types, list)
        or len(layer_types) != settings["n_layers"]
        or any(kind not in wanted for kind in layer_types)
    ):
        faults.append(f"layer_types ({layer_types}): must be full_attention throughout, once for each layer")
    return faults
