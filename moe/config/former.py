"""What an earlier version has saved of a configuration, as this version writes it."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from moe.config.schema import ModelConfig

DEFAULTS = {field.name: field.default for field in fields(ModelConfig) if field.default is not MISSING}
REQUIRED = [field.name for field in fields(ModelConfig) if field.name not in DEFAULTS]


def model_settings(saved: dict[str, Any]) -> dict[str, Any]:
    """A `model` section: a setting that an earlier version did not have was at its default, `qk_norm: true` is head."""
    settings = {**DEFAULTS, **saved}
    return {**settings, "qk_norm": "head"} if settings["qk_norm"] is True else settings


def with_present_settings(config: dict[str, Any]) -> dict[str, Any]:
    """A config whose `model` section, where it has one, is that of now."""
    model = config.get("model")
    return {**config, "model": model_settings(model)} if isinstance(model, dict) else config
