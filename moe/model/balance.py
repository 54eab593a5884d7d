"""How experts are kept equally loaded: each rule one class, all of it here.

- A rule adds a term to the loss of a microbatch, or changes something after a step from the statistics of the global
  batch, or both. `MoEModel` holds one, so that its buffers are in every checkpoint; `StepLosses` calls `end_step` and
  logs `metrics`. Neither knows which rule it is.
- No split of a batch over microbatches and ranks changes what a rule does: it sees sums, and what it takes from a
  complete step is the previous one's.
- A further rule is a class here and a line in RULES, and its row in moe/config/balance.py. What it needs of a router
  beyond `RouterStats` is a field there.

E experts, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from moe.model.router import LayerMetric, Router, RouterStats, bias_range


class Balance(nn.Module):
    """No rule at all, and what a rule may have.

    Every rule is made with n_layers (those
    that have experts), n_experts, weight (`model.balance_loss`) and rate (`model.balance_rate`).
    """

    def __init__(
        self, *, n_layers: int = 0, n_experts: int = 0, weight: float = 0.0, rate: float | None = None
    ) -> None:
        super().__init__()

    def loss(self, stats: RouterStats, tokens: int) -> Tensor | float:
        """What is added to a microbatch's loss. tokens: of the global batch."""
        return 0.0

    def end_step(self, total: RouterStats, routers: Sequence[Router]) -> None:
        """After each step that was not skipped. total: of the step's global batch, the same on every rank."""

    def metrics(self, total: RouterStats, tokens: int) -> dict[str, LayerMetric]:
        """Of a step's global batch, which holds `tokens`; called before `end_step`."""
        return {}


class BalanceLoss(Balance):
    """weight * sum over layers of E * sum over experts of f_e * P_e.

    f_e, the expert's share of all assignments, is that of the previous step's global batch (arXiv 2501.11873), uniform
    at step 0; P_e, its mean score, is that of the current one. 1 in each layer is perfect balance.

    The formula is that of Switch Transformer (arXiv 2101.03961, eq. 4), of Megatron's `aux_loss` and of OLMo-core's
    `lb_loss`. Layers are summed here as in Switch and Megatron; OLMo-core takes their mean: 0.01 here is its 0.01 L.

    n_layers: those that have experts. rate: of the rules that have one.
    """

    share_LE: Tensor

    def __init__(self, *, n_layers: int, n_experts: int, weight: float, rate: float | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.rate = rate
        self.register_buffer("share_LE", torch.full((n_layers, n_experts), 1.0 / n_experts))

    def loss(self, stats: RouterStats, tokens: int) -> Tensor:
        return self.weight * (self.share_LE.shape[1] * (self.share_LE * stats.score_E).sum() / tokens)

    def end_step(self, total: RouterStats, routers: Sequence[Router]) -> None:
        self.share_LE.copy_(total.counts_E / total.counts_E.sum(1, keepdim=True))

    def metrics(self, total: RouterStats, tokens: int) -> dict[str, LayerMetric]:
        value_L = self.share_LE.shape[1] * (self.share_LE * total.score_E).sum(1) / tokens
        return {"train/balance_loss": LayerMetric(value_L, fmean)}


class BiasSign(BalanceLoss):
    """b_e += rate * sign(mean count - count of e), then the biases less their mean (arXiv 2408.15664, DeepSeek-V3 with
    0.001; the mean as in torchtitan). The loss may be there beside it.
    """

    @torch.no_grad()
    def end_step(self, total: RouterStats, routers: Sequence[Router]) -> None:
        super().end_step(total, routers)
        for counts_E, router in zip(total.counts_E, routers, strict=True):
            set_bias(router, router.bias_E + self.rate * (counts_E.mean() - counts_E).sign())


class BiasQuantile(BalanceLoss):
    """b_e: the K/E quantile over the step's tokens of what e lacked to the (K+1)th biased score (torchtitan #4577,
    kexue.fm/archives/11619). No rate. The quantile is that of a histogram, whose integers are the same for any number
    of ranks and microbatches.

    Of an expert with too many tokens that is the bias with which, all others as they were, K/E of the tokens had chosen
    it. One with too few is raised by less than that, or not at all: a token that does not choose it would do so from
    the Kth biased score on. It gains as the others fall, over several steps.
    """

    @torch.no_grad()
    def end_step(self, total: RouterStats, routers: Sequence[Router]) -> None:
        super().end_step(total, routers)
        for needed_EB, router in zip(total.needed_EB, routers, strict=True):
            assert router.bias_E is not None
            low, high = bias_range(router.bias_E)
            wanted = needed_EB[0].sum() * router.top_k / router.n_experts
            bin_E = (needed_EB.cumsum(-1) < wanted).sum(-1)
            set_bias(router, low + (bin_E + 0.5) / needed_EB.shape[-1] * (high - low))


def set_bias(router: Router, bias_E: Tensor) -> None:
    """Less its mean, which decides no choice and would drift."""
    assert router.bias_E is not None
    router.bias_E.copy_(bias_E - bias_E.mean())


RULES: dict[str, type[Balance]] = {"loss": BalanceLoss, "sign": BiasSign, "quantile": BiasQuantile}

FORMER_NAMES = {"expert_share_LE": "balance.share_LE"}  # of entries in the checkpoints of version 0.1


def with_present_names(state: dict[str, Any]) -> dict[str, Any]:
    """A model's state by the names of now, whichever version wrote it."""
    return {FORMER_NAMES.get(name, name): value for name, value in state.items()}
