"""How large the weights and their updates are, by kind of parameter.

| metric | meaning |
|---|---|
| `weight_rms/{kind}` | root mean square of the weights after the step |
| `update_rms/{kind}` | root mean square of the step's update, learning rate included, without weight decay |

Kinds: embeddings (and head), attention, experts, router, dense (MLPs of blocks without experts), norms. Measured at the
steps that are logged, on all ranks; of sharded weights in one collective; with one wait for the device.
"""

from __future__ import annotations

import math
import re

import torch
from composer import Callback, Logger, State
from torch import Tensor, nn

from moe.config.times import Every
from moe.optim.norms import full_norms, part_norms, total


def kind_of(name: str, parameter: Tensor) -> str:
    """What a Transformer's parameter belongs to, by its name."""
    if parameter.ndim < 2:
        return "norms"
    if ".moe." in name:
        return "router" if ".router." in name else "experts"
    if ".mlp." in name:
        return "dense"
    if ".attn." in name:
        return "attention"
    if not re.search(r"(^|\.)(embed|lm_head)\.", name):
        raise ValueError(f"{name}: what this parameter belongs to is not known here; add it")
    return "embeddings"


class WeightNorms(Callback):
    def __init__(self, model: nn.Module, log: Every):
        self.model = model
        self.log = log

    def after_train_batch(self, state: State, logger: Logger) -> None:
        due = self.log.due(int(state.timestamp.batch) + 1)
        state.optimizers[0].update_norms = {} if due else None

    @torch.no_grad()
    def batch_end(self, state: State, logger: Logger) -> None:
        updates = state.optimizers[0].update_norms
        if updates is None:
            return
        state.optimizers[0].update_norms = None
        members: dict[str, list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            members.setdefault(kind_of(name, parameter), []).append(parameter)
        parameters = [p for kind in members.values() for p in kind]
        moved = [p for p in parameters if p in updates]  # none where the step was skipped
        norms = [*part_norms([p.detach() for p in parameters]), *(updates[p][1] for p in moved)]
        norms = full_norms(norms, parameters + moved)
        weight = dict(zip(parameters, norms[: len(parameters)], strict=True))
        update = {p: updates[p][0] * norm for p, norm in zip(moved, norms[len(parameters) :], strict=True)}
        totals = [total([of[p] for p in kind if p in of]) for kind in members.values() for of in (weight, update)]
        values = torch.stack([value.to(norms[0].device).double() for value in totals]).tolist()
        metrics = {}
        for number, (kind, those) in enumerate(members.items()):
            size = math.sqrt(sum(p.numel() for p in those))
            metrics[f"weight_rms/{kind}"] = values[2 * number] / size
            metrics[f"update_rms/{kind}"] = values[2 * number + 1] / size
        logger.log_metrics(metrics)
