"""What an earlier version has saved of a configuration, as this version writes it."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from moe.config.schema import Config, ModelConfig

DEFAULTS = {field.name: field.default for field in fields(ModelConfig) if field.default is not MISSING}
REQUIRED = [field.name for field in fields(ModelConfig) if field.name not in DEFAULTS]


def model_settings(saved: dict[str, Any]) -> dict[str, Any]:
    """A `model` section: a setting that an earlier version did not have was at its default, `qk_norm: true` is head."""
    settings = {**DEFAULTS, **saved}
    return {**settings, "qk_norm": "head"} if settings["qk_norm"] is True else settings


def with_present_settings(config: dict[str, Any]) -> dict[str, Any]:
    """`config` as plain values of JSON, with the settings that the version which wrote it did not have. One that could
    not be read, and so is empty, stays empty.
    """
    if not config:
        return {}
    settings: dict[str, Any] = json.loads(json.dumps(_with_defaults(config, Config), default=str))
    model = settings.get("model")
    return {**settings, "model": model_settings(model)} if isinstance(model, dict) else settings


def _with_defaults(config: dict[str, Any], kind: type) -> dict[str, Any]:
    filled, hints = dict(config), get_type_hints(kind)
    for field in fields(kind):
        hint = hints[field.name]
        if field.name in config:
            section = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
            if isinstance(section, type) and isinstance(config[field.name], dict) and get_origin(hint) is not dict:
                filled[field.name] = _with_defaults(config[field.name], section)
        elif field.default is not MISSING:
            filled[field.name] = field.default
        elif field.default_factory is not MISSING:
            value = field.default_factory()
            filled[field.name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return filled
