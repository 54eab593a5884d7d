"""Counts what the global batch holds before a step, and adds up the losses of all microbatches and ranks after it.

| metric | meaning |
|---|---|
| `train/loss` | mean negative log likelihood per target token of the step's global batch, nats |
| `train/perplexity` | its exponential |
| `train/loss_spikes` | steps so far whose loss was 6 standard deviations above the mean of the 128 before |
| `train/z_loss` | mean squared log-partition of the output logits, unweighted |
| `train/balance_loss` | load-balance loss, mean over layers, unweighted; 1 is perfect balance |
| `train/router_z_loss` | router z-loss, mean over layers, unweighted |
| `experts/load_max` | largest share of an expert over its fair share, worst layer |
| `experts/load_min` | smallest share of an expert over its fair share, worst layer |
| `tokens` | tokens trained on so far |
"""

from __future__ import annotations

import math

import torch
from composer import Callback, Logger, State
from composer.utils import dist

from moe.config.times import Every
from moe.train.model import MoEModel
from moe.train.spikes import SpikeCounter

IGNORED = -100


class StepLosses(Callback):
    def __init__(self, model: MoEModel, *, tokens_per_step: int, log: Every):
        self.model = model
        self.tokens_per_step = tokens_per_step
        self.log = log
        self.spikes = SpikeCounter()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.spikes.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.spikes.load_state_dict(state)

    def batch_start(self, state: State, logger: Logger) -> None:
        labels = state.batch["labels"]
        targets = state.device.tensor_to_device((labels[:, 1:] != IGNORED).sum())
        dist.all_reduce(targets, reduce_operation="SUM")
        self.model.begin_step(
            global_targets=targets,
            global_tokens=self.tokens_per_step,
            rank_samples=len(labels),
            world_size=dist.get_world_size(),
        )

    def before_train_batch(self, state: State, logger: Logger) -> None:
        self.model.sums.clear()  # also where a batch is tried again with a smaller microbatch

    def after_train_batch(self, state: State, logger: Logger) -> None:
        sums = self.model.sums
        flat = torch.cat([value.double().flatten() for value in sums.values()])
        dist.all_reduce(flat, reduce_operation="SUM")
        parts = flat.split([value.numel() for value in sums.values()])
        total = {name: part.view(value.shape) for (name, value), part in zip(sums.items(), parts, strict=True)}
        counts_LE = total["counts_LE"]
        share_LE = counts_LE / counts_LE.sum(dim=1, keepdim=True)
        self.spikes.add(total["nll"] / total["targets"])
        if self.log.due(int(state.timestamp.batch) + 1):
            logger.log_metrics(self._metrics(total, share_LE, int(state.timestamp.batch) + 1))
        self.model.expert_share_LE.copy_(share_LE)

    def _metrics(self, total: dict[str, torch.Tensor], share_LE: torch.Tensor, step: int) -> dict[str, float]:
        n_layers, n_experts = share_LE.shape
        previous_LE = self.model.expert_share_LE
        balance = n_experts * (previous_LE * total["prob_LE"]).sum() / self.tokens_per_step / n_layers
        values = torch.stack(
            [
                total["nll"] / total["targets"],
                total["z"] / total["targets"],
                balance,
                total["router_z_L"].mean() / self.tokens_per_step,
                share_LE.max() * n_experts,
                share_LE.min() * n_experts,
                self.spikes.state["spikes"][0],
            ]
        ).tolist()
        loss = values[0]
        return {
            "train/loss": loss,
            "train/perplexity": math.exp(min(loss, 700)),
            "train/z_loss": values[1],
            "train/balance_loss": values[2],
            "train/router_z_loss": values[3],
            "experts/load_max": values[4],
            "experts/load_min": values[5],
            "train/loss_spikes": values[6],
            "tokens": step * self.tokens_per_step,
        }
