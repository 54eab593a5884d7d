"""What one architecture of transformers computes, and what it calls our settings and parameters; for both directions.

- Data and two small functions: no torch, no files. The export and the import read it (moe/use/export), `moe check`
  refuses by it before anything is trained.
- Settings are those of a manifest's `model` section by today's names (moe/config/former.py), `head_dim` a number.
- Parameters have our names inside a block. A tensor that holds several of theirs is cut in moe/use/export/names.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]
Read = tuple[dict[str, tuple[str, Any]], list[str]]  # our setting -> (their key, its value); errors

# our setting -> (transformers' key, what it means there if it is absent; None: it must be there)
COMMON_KEYS: dict[str, tuple[str, Any]] = {
    "d_model": ("hidden_size", None),
    "n_layers": ("num_hidden_layers", None),
    "n_heads": ("num_attention_heads", None),
    "n_kv_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
}
WITHOUT_HEAD = {ours: pair for ours, pair in COMMON_KEYS.items() if ours != "head_dim"}  # where it may be absent
COMMON_NAMES: dict[str, str | None] = {
    "attn_norm.weight": "input_layernorm.weight",
    "moe_norm.weight": "post_attention_layernorm.weight",
    "moe.router.weight": "mlp.gate.weight",
}


def nothing_more(settings: Settings) -> dict[str, Any]:
    return {}


def nothing_to_read(config: dict[str, Any]) -> Read:
    return {}, []


def head_width(config: dict[str, Any]) -> tuple[str, Any]:
    """head_dim where it may be absent: the key and its value."""
    width, heads, given = config.get("hidden_size"), config.get("num_attention_heads"), config.get("head_dim")
    known = isinstance(width, int) and isinstance(heads, int) and heads > 0
    return "head_dim", width // heads if given is None and known else given  # type: ignore[operator]


def no_notes(settings: Settings) -> list[str]:
    return []


@dataclass(frozen=True, kw_only=True)
class Family:
    """
    has          setting -> the values that it computes, the first of them what an import stands for; any of a setting
                 that is not named
    keys         setting -> (key of config.json, what an absent one means)
    fixed        key -> (what it must say, what an absent one means)
    written      keys that change no result; written, not read
    to_keys      settings -> keys that follow from several
    from_keys    config.json -> those settings again, and what is wrong with the keys
    dense        it has one expert: an ordinary MLP
    names        our parameter inside a block -> theirs inside a layer; None: it has none, and needs none. moe.w13 and
                 moe.w2 stand here where one tensor holds the matrices of all experts, lm_head.weight where another does
    scales       our parameter -> what its values are multiplied by when they are read
    folded       config.json -> the family with the scales of that model
    experts      the folder of an expert inside a layer, {} its number; shared, mlp: those of the shared expert and of a
                 dense layer's MLP
    projections  gate, up and down
    zeros        parameters that it needs and that are 0 where the model has none
    rope_theta   what an absent one means
    also         settings -> what else it cannot compute
    engines      settings -> what is lost in which engine, reported before a run
    """

    architecture: str
    model_type: str
    has: dict[str, tuple[Any, ...]]
    keys: dict[str, tuple[str, Any]]
    fixed: dict[str, tuple[Any, Any]]
    written: dict[str, Any] = field(default_factory=dict)
    to_keys: Callable[[Settings], dict[str, Any]] = nothing_more
    from_keys: Callable[[dict[str, Any]], Read] = nothing_to_read
    dense: bool = False
    names: dict[str, str | None] = field(default_factory=lambda: COMMON_NAMES)
    scales: dict[str, float] = field(default_factory=dict)
    folded: Callable[[dict[str, Any]], Family] | None = None
    experts: str = "mlp.experts.{}"
    shared: str = "mlp.shared_experts"
    mlp: str = "mlp"
    projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    zeros: tuple[str, ...] = ()
    rope_theta: float = 10000.0
    also: Callable[[Settings], list[str]] = no_notes
    engines: Callable[[Settings], list[str]] = no_notes

    def lacks(self, settings: Settings) -> list[str]:
        """What keeps it from computing a model of these settings, each as `model.KEY VALUE (is VALUE)`."""
        found = []
        if self.dense != (settings["n_experts"] == 1):
            found.append(f"model.n_experts {'1' if self.dense else 'above 1'} (is {settings['n_experts']})")
        for name, values in self.has.items():
            if settings[name] not in values:
                wanted = " or ".join(map(_shown, values))
                found.append(f"model.{name} {wanted} (is {_shown(settings[name])})")
        return found + self.also(settings)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
