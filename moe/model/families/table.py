"""Which architecture of transformers a model is exported as: the first that computes it."""

from __future__ import annotations

from typing import Any

from moe.common.errors import InputError
from moe.config.former import REQUIRED, model_settings
from moe.model.families.family import Family, Settings
from moe.model.families.glm4_moe import GLM4_MOE
from moe.model.families.granite_moe import GRANITE_MOE
from moe.model.families.mixtral import MIXTRAL
from moe.model.families.olmoe import OLMOE
from moe.model.families.qwen3 import QWEN3
from moe.model.families.qwen3_moe import QWEN3_MOE

FAMILIES: tuple[Family, ...] = (QWEN3, QWEN3_MOE, MIXTRAL, OLMOE, GLM4_MOE)  # in the order of preference
BY_ARCHITECTURE = {family.architecture: family for family in (*FAMILIES, GRANITE_MOE)}  # what can be read


def complete(model: dict[str, Any]) -> Settings:
    """A manifest's `model` section as families read it.

    Raises:
        InputError: it lacks a setting that has no default.
    """
    settings = model_settings(model)
    if missing := [name for name in REQUIRED if name not in settings]:
        raise InputError(f"config.model: has no {', '.join(missing)}; the manifest is damaged")
    return {**settings, "head_dim": settings["head_dim"] or settings["d_model"] // settings["n_heads"]}


def family_of(model: dict[str, Any]) -> Family:
    """That of a manifest's `model` section.

    Raises:
        InputError: none computes it; says of each what it lacks.
    """
    if hindrance := hindrance_of(model):
        raise InputError(hindrance)
    settings = complete(model)
    return next(family for family in FAMILIES if not family.lacks(settings))


def hindrance_of(model: dict[str, Any]) -> str | None:
    """Why no architecture computes a model of these settings, None where one does."""
    settings = complete(model)
    lacking = [(family.architecture, family.lacks(settings)) for family in FAMILIES]
    if not all(lacks for _, lacks in lacking):
        return None
    nearest_first = sorted(lacking, key=lambda pair: len(pair[1]))
    reasons = "; ".join(f"{name} needs {', '.join(lacks)}" for name, lacks in nearest_first)
    return f"no architecture of transformers computes this model, so that it cannot be exported: {reasons}"


def engine_notes(model: dict[str, Any]) -> list[str]:
    """What engines lose of a model that can be exported."""
    return family_of(model).engines(complete(model))
