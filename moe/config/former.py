"""The `model` section of a checkpoint's manifest as this version writes it, whichever version wrote it."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from moe.config.schema import ModelConfig

DEFAULTS = {field.name: field.default for field in fields(ModelConfig) if field.default is not MISSING}


def model_settings(saved: dict[str, Any]) -> dict[str, Any]:
    """A setting that an earlier version did not have was at its default; `qk_norm: true` is head."""
    settings = {**DEFAULTS, **saved}
    return {**settings, "qk_norm": "head"} if settings["qk_norm"] is True else settings
