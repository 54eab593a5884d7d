"""A microbatch outside of a Trainer: for checks, trials and profiles."""

from __future__ import annotations

from composer.core import Precision
from composer.core.precision import get_precision_context
from torch import Tensor

from moe.model import LossParts
from moe.train.composer_model import MoEModel


def microbatch_loss(model: MoEModel, batch: dict[str, Tensor], precision: str) -> tuple[LossParts, Tensor]:
    """Forward pass of a microbatch that is the full global batch: its parts, and the mean loss to differentiate.

    precision: Composer's name of it, e.g. amp_bf16.
    """
    with get_precision_context(Precision(precision)):
        parts = model(batch)
        return parts, model.loss(parts, batch)["total"]
