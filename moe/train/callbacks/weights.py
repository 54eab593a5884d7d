"""How large the weights and their updates are, by kind of parameter.

| metric | meaning |
|---|---|
| `weight_rms/{kind}` | root mean square of the weights after the step |
| `update_rms/{kind}` | root mean square of the step's update, learning rate included, without weight decay |

Kinds: embeddings (and head), attention, experts, router, dense (MLPs of blocks without experts), norms. Measured at the
steps that are logged, on all ranks (weights may be sharded), with one wait for the device.
"""

from __future__ import annotations

import math

import torch
from composer import Callback, Logger, State
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moe.config.times import Every


def kind_of(name: str, parameter: Tensor) -> str:
    """What a Transformer's parameter belongs to, by its name."""
    if parameter.ndim < 2:
        return "norms"
    if ".moe." in name:
        return "router" if ".router." in name else "experts"
    if ".mlp." in name:
        return "dense"
    return "attention" if ".attn." in name else "embeddings"


def total_norm(tensors: list[Tensor]) -> Tensor:
    """L2 norm over all of them, fp64 scalar; of full tensors where they are sharded."""
    norm = torch.nn.utils.get_total_norm(tensors)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).double()


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
        kinds: dict[str, list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            kinds.setdefault(kind_of(name, parameter), []).append(parameter)
        norms = []
        for members in kinds.values():
            norms.append(total_norm([p.detach() for p in members]))
            norms.append(total_norm([updates[p] for p in members if p in updates]))  # none where the step was skipped
        values = torch.stack([norm.to(norms[0].device) for norm in norms]).tolist()
        metrics = {}
        for number, (kind, members) in enumerate(kinds.items()):
            size = math.sqrt(sum(p.numel() for p in members))
            metrics[f"weight_rms/{kind}"] = values[2 * number] / size
            metrics[f"update_rms/{kind}"] = values[2 * number + 1] / size
        logger.log_metrics(metrics)
