"""Our parameters and what transformers calls them, for both directions.

- Each architecture has its own names (moe/model/families); all have one matrix per expert, gate, up and down apart: the
  names of every published checkpoint of theirs, which transformers 4 and 5, vLLM, SGLang and llama.cpp read.
- Parts are views: naming a parameter reads nothing of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe.model.families.family import Family, Settings

OUTER = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


def hf_parts(name: str, weight: Tensor, family: Family) -> dict[str, Tensor]:
    """The tensors that hold parameter `name` in a Hugging Face folder, each a view of `weight`."""
    if name in OUTER:
        return {family.names.get(name) or OUTER[name]: weight}
    _, number, rest = name.split(".", 2)
    layer = f"model.layers.{number}"
    folder, _, matrix = rest.rpartition(".")
    if folder == "moe" and matrix in ("w13", "w2") and rest not in family.names:
        experts = [f"{layer}.{family.experts.format(e)}" for e in range(weight.shape[0])]
        parts = [_matrices(expert, matrix, part, family) for expert, part in zip(experts, weight, strict=True)]
        return {key: value for kind in zip(*(part.items() for part in parts), strict=True) for key, value in kind}
    if matrix in ("w13", "w2") and rest not in family.names:
        inside = {"moe.shared": family.shared, "mlp": family.mlp}[folder]
        return _matrices(f"{layer}.{inside}", matrix, weight, family)
    theirs = family.names.get(rest, rest.replace("attn.", "self_attn."))
    return {} if theirs is None else {f"{layer}.{theirs}": weight}


def scale_of(name: str, family: Family) -> float:
    """What the values of parameter `name` are multiplied by when they are read."""
    return family.scales.get(name if name in OUTER else name.split(".", 2)[2], 1.0)


def _matrices(prefix: str, matrix: str, weight: Tensor, family: Family) -> dict[str, Tensor]:
    """Gate and up of a w13, or down of a w2."""
    gate, up, down = (f"{prefix}.{name}.weight" for name in family.projections)
    if matrix == "w2":
        return {down: weight}
    halves = weight.chunk(2)
    return {gate: halves[0], up: halves[1]}


def with_zeros(weights: dict[str, Tensor], settings: Settings, family: Family) -> dict[str, Tensor]:
    """The weights, and what the family needs beside them in every layer of experts: zeros."""
    wide, hidden = settings["d_model"], settings["expert_hidden"]
    shapes = {
        "moe.router.bias_E": (settings["n_experts"],),
        "moe.shared.w13": (2 * hidden, wide),
        "moe.shared.w2": (wide, hidden),
    }
    layers = range(settings["first_k_dense_replace"], settings["n_layers"])
    needed = {f"blocks.{layer}.{name}": shapes[name] for layer in layers for name in family.zeros}
    return weights | {name: torch.zeros(shape) for name, shape in needed.items() if name not in weights}
