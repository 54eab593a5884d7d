"""The model, in plain PyTorch. Names are loaded on first use: counting parameters and bytes must not pay for torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe.model.transformer import LossParts, Transformer

__all__ = ["LossParts", "Transformer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from moe.model import transformer

    return getattr(transformer, name)
