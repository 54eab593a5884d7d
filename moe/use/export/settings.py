"""The `model` section of our configuration and transformers' config.json, both ways.

- Written here, not by transformers: 4.57 cannot read what 5.x writes. Both read this, which holds `num_experts` and
  `num_local_experts`, `rope_theta` and `rope_parameters`, and states what either takes a default for.
- Read with the defaults of transformers, so that a key that is absent means here what it means there. Every key that
  asks for something this model does not have is named, all at once.
- What is of one architecture stands in its file in moe/model/families.
"""

from __future__ import annotations

from typing import Any

from moe.common.errors import InputError
from moe.config.former import DEFAULTS
from moe.model.families.family import Family, Settings
from moe.model.families.table import BY_ARCHITECTURE
from moe.model.flops import dense_width_of

# Kind, least, most and the words for it; every other number is an integer of at least 1.
NUMBERS: dict[str, tuple[Any, float, float, str]] = {
    "rms_norm_eps": ((int, float), 1e-300, 1, "a number above 0, at most 1"),
    "rope_theta": ((int, float), 1e-300, 1e12, "a number above 0, at most 1e12"),
    "partial_rotary_factor": ((int, float), 1e-300, 1, "a number above 0, at most 1"),
    "routed_scaling_factor": ((int, float), 1e-300, 1000, "a number above 0, at most 1000"),
    "n_shared_experts": (int, 0, 1000, "an integer of at least 0"),
    "first_k_dense_replace": (int, 0, 10_000, "an integer of at least 0"),
}
TRUTHS = ("tie_word_embeddings", "norm_topk_prob")
# Parts of other families: nothing but an absent, null, zero or empty value will do where the family does not read it.
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


def to_config(
    settings: Settings, family: Family, *, vocab_size: int, max_seq_len: int, special: dict[str, int]
) -> dict[str, Any]:
    """config.json of a model of these settings (`complete` of moe/model/families/table.py). special: bos_token_id and
    the like.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": settings["rope_theta"]}
    derived = family.to_keys(settings)
    if "partial_rotary_factor" in derived:
        rope["partial_rotary_factor"] = derived["partial_rotary_factor"]
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": vocab_size,
        "max_position_embeddings": max_seq_len,
        **{theirs: settings[ours] for ours, (theirs, _) in family.keys.items()},
        **{key: value for key, (value, _) in family.fixed.items()},
        "rope_theta": settings["rope_theta"],
        "rope_scaling": None,
        "rope_parameters": rope,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float32",
        **family.written,
        **derived,
        **special,
    }


def from_config(config: dict[str, Any], source: str) -> tuple[Settings, Family]:
    """Our `model` section for a config.json, and the family that it is of.

    Raises:
        InputError: names every key by which the model differs from ours, with its value and the one it would need.
    """
    listed = config.get("architectures")
    architecture = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else None
    family = BY_ARCHITECTURE.get(architecture or "")
    if family is None:
        known = ", ".join(BY_ARCHITECTURE)
        supported = {theirs for each in BY_ARCHITECTURE.values() for theirs, _ in each.keys.values()}
        hinder = [
            f"{key} ({config[key]}): is not supported" for key in FOREIGN if key not in supported and config.get(key)
        ]
        raise _differs(source, [f"architectures ({listed}): must be one of {known}", *hinder])
    errors = []
    if config.get("model_type") != family.model_type:
        errors.append(f"model_type ({config.get('model_type')!r}): must be {family.model_type}")
    for key, (wanted, default) in family.fixed.items():
        found = config.get(key, default)
        if (type(found) is not type(wanted) or found != wanted) and (found is not None or wanted):
            errors.append(f"{key} ({found}): must be {wanted}")  # null stands for false
    more, wrong = family.from_keys(config)
    errors += wrong
    values = {ours: (theirs, config.get(theirs, default)) for ours, (theirs, default) in family.keys.items()}
    read = {theirs for theirs, _ in values.values()} | family.written.keys()
    errors += [f"{key} ({config[key]}): is not supported" for key in FOREIGN if key not in read and config.get(key)]
    values |= more
    rope, wrong = _rope(config)
    errors += wrong
    if "partial_rotary_factor" not in more:
        share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        errors += [f"partial_rotary_factor ({share}): must be 1.0"] * (share != 1.0)
    values["rope_theta"] = ("rope_theta", rope.get("rope_theta", config.get("rope_theta", family.rope_theta)))
    given = dict(values.values()) | {
        "vocab_size": config.get("vocab_size"),
        "max_position_embeddings": config.get("max_position_embeddings", 2048),
    }
    checked = {key: value for key, value in given.items() if key != "use_qk_norm"}
    errors += [error for key, value in checked.items() if (error := _value_error(key, value))]
    implied = {name: known[0] for name, known in family.has.items() if known[0] != DEFAULTS[name]}
    settings = {"n_experts": 1, "top_k": 1, **implied} | {ours: value for ours, (_, value) in values.items()}
    if not errors:
        errors = _errors_between(settings, config)
    if errors:
        raise _differs(source, errors)
    if settings["head_dim"] == settings["d_model"] // settings["n_heads"]:
        settings["head_dim"] = None  # as a yaml has it, whose value a run compares with this one
    if settings.get("dense_hidden") == dense_width_of({"n_shared_experts": 0, **settings, "dense_hidden": None}):
        settings["dense_hidden"] = None
    for name in ("rope_theta", "partial_rotary_factor", "routed_scaling_factor"):
        if name in settings:
            settings[name] = float(settings[name])
    return settings, family.folded(config) if family.folded else family


def _differs(source: str, errors: list[str]) -> InputError:
    listed = "\n".join(f"  {error[:300]}" for error in errors)
    return InputError(f"{source}: is not a model of this family; its config.json differs:\n{listed}")


def _rope(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What config.json says of rotary embeddings, and what is wrong with it."""
    ropes = {key: config.get(key) for key in ("rope_parameters", "rope_scaling")}
    errors = [f"{k} ({v!r}): must be an object or null" for k, v in ropes.items() if not isinstance(v, dict | None)]
    rope: dict[str, Any] = next((value for value in ropes.values() if value and isinstance(value, dict)), {})
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        errors.append(f"rope_type ({kind}): must be default")
    theta = rope.get("rope_theta")
    if theta is not None and config.get("rope_theta") not in (None, theta):  # transformers 4 reads this, 5 the other
        errors.append(f"rope_theta ({config['rope_theta']!r}): must be {theta!r}, as beside rope_type")
    return rope, errors


def _value_error(key: str, value: Any) -> str | None:
    """What is wrong with a value of config.json by itself, None where nothing is."""
    if value is None:
        return f"{key}: is missing"
    if key in TRUTHS:
        return None if isinstance(value, bool) else f"{key} ({value!r}): must be true or false"
    kinds, least, most, wanted = NUMBERS.get(key, (int, 1, 10**12, "an integer of at least 1"))
    if isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most:
        return None
    return f"{key} ({value!r}): must be {wanted}"


def _errors_between(settings: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Values that are good each and do not go together."""
    errors, layer_types = [], config.get("layer_types")
    if settings["head_dim"] % 2:
        errors.append(f"head_dim ({settings['head_dim']}): must be even")
    if settings["n_heads"] % settings["n_kv_heads"]:
        errors.append(
            f"num_key_value_heads ({settings['n_kv_heads']}): must divide num_attention_heads ({settings['n_heads']})"
        )
    if settings["top_k"] > settings["n_experts"]:
        errors.append(
            f"num_experts_per_tok ({settings['top_k']}): must be at most num_experts ({settings['n_experts']})"
        )
    if settings.get("first_k_dense_replace", 0) >= settings["n_layers"]:
        errors.append(
            f"first_k_dense_replace ({settings['first_k_dense_replace']}): must be below num_hidden_layers "
            f"({settings['n_layers']})"
        )
    pad, rows = config.get("pad_token_id"), config["vocab_size"]
    if pad is not None and (type(pad) is not int or not -rows <= pad < rows):
        errors.append(f"pad_token_id ({pad!r}): must be null or an integer below vocab_size ({rows})")
    wanted = ["full_attention"]
    if layer_types is not None and (
        not isinstance(layer_types, list)
        or len(layer_types) != settings["n_layers"]
        or any(kind not in wanted for kind in layer_types)
    ):
        errors.append(f"layer_types ({layer_types}): must be full_attention throughout, once for each layer")
    return errors
