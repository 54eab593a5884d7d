"""The model, in plain PyTorch."""

from moe.model.transformer import LossParts, Transformer

__all__ = ["LossParts", "Transformer"]
