"""What training runs of benchmarks/learning_run.py are made of, where it is not the trainer's own: ways to balance
experts and to begin, that were tried against it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe.model import LossParts, Transformer
from moe.model.balance import BiasQuantile
from moe.model.init import STD
from moe.model.router import RouterStats
from moe.optim.muon import Muon

INIT_GAIN = 0.5


def muon_flops(optimizer: Muon) -> float:
    """FLOPs of the products in one step's orthogonalisation: five times Gram matrix, its square, and their product."""
    total = 0.0
    for group in optimizer.param_groups:
        if group["kind"] == "muon":
            for p in group["params"]:
                rows, cols = p.shape[-2] // group["split"], p.shape[-1]
                small, large = sorted((rows, cols))
                total += p.numel() / (rows * cols) * 5 * (4 * small * small * large + 2 * small**3)
    return total


class Balance:
    """The expert shares that weigh the mean probabilities in the balance loss, or the biases of the rule `quantile`."""

    def __init__(self, kind: str, model: Transformer) -> None:
        self.kind = kind
        self.routers = [layer.router for layer in model.expert_layers]
        self.seen: RouterStats | None = None
        n_layers, n_experts = len(self.routers), self.routers[0].n_experts
        self.share_LE = torch.full((n_layers, n_experts), 1 / n_experts)
        self.counts_LE = torch.zeros_like(self.share_LE)

    def loss(self, parts: LossParts) -> Tensor:
        """Sum over layers and tokens; the caller divides by the batch's tokens."""
        counts_LE = parts.routers.counts_E
        self.counts_LE += counts_LE
        if self.kind == "quantile":
            stats = parts.routers.detach()
            self.seen = stats if self.seen is None else self.seen + stats
            return torch.zeros(())
        share_LE = self.share_LE
        if self.kind != "lagged":
            seen_LE = counts_LE if self.kind == "microbatch" else self.counts_LE
            share_LE = seen_LE / seen_LE.sum(-1, keepdim=True)
        return share_LE.shape[1] * (share_LE * parts.routers.score_E).sum()

    def end_step(self) -> Tensor:
        """The step's counts [L, E]."""
        if self.seen is not None:
            n_layers, n_experts = self.share_LE.shape
            BiasQuantile(n_layers=n_layers, n_experts=n_experts, weight=0.0).end_step(self.seen, self.routers)
            self.seen = None
        counts_LE = self.counts_LE
        self.share_LE, self.counts_LE = counts_LE / counts_LE.sum(-1, keepdim=True), torch.zeros_like(counts_LE)
        return counts_LE


@torch.no_grad()
def init_by_fan_in(model: Transformer) -> None:
    """The same draws, wider: what has std STD, and less where it writes to the residual stream, gets
    INIT_GAIN / sqrt(fan-in) in STD's place. Norms are vectors; a router's logits are to start small.
    """
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and not name.endswith("router.weight"):
            weight.mul_(INIT_GAIN / math.sqrt(weight.shape[-1]) / STD)
