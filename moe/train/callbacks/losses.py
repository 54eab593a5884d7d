"""Counts what the global batch holds before a step, and adds up the losses of all microbatches and ranks after it.

| metric | meaning |
|---|---|
| `train/loss` | mean negative log likelihood per target token of the step's global batch, nats |
| `train/perplexity` | its exponential |
| `train/loss_spikes` | steps so far whose loss was 6 standard deviations above the mean of the 128 before |
| `train/spike_score` | their share of all steps |
| `train/z_loss` | mean squared log-partition of the output logits, unweighted |
| `train/balance_loss` | load-balance loss, mean over layers, unweighted; 1 is perfect balance |
| `train/router_z_loss` | router z-loss, mean over layers, unweighted |
| `experts/load_max`, `load_min` | an expert's largest and smallest load over its fair share, worst layer |
| `experts/max_vio` | largest load over the fair share, less 1, over all steps since the last row; worst layer |
| `experts/dead` | experts with less than 1% of their fair share since the last row, all layers |
| `experts/idle_steps` | steps in a row in which an expert got less than 1% of its fair share; longest |
| `router/entropy` | entropy of the router's probabilities, nats, mean over tokens and layers |
| `router/logit_max` | largest router logit of the step |
| `tokens` | tokens trained on so far |

Each of these but the first four, `train/z_loss` and `tokens` is logged for every layer too, as NAME/layer_07, and
`experts/load/layer_07` is the list of the layer's loads since the last row, one an expert.

All of it stays on the device between two rows; a row costs one wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist
from torch import Tensor

from moe.config.times import Every
from moe.train.composer_model import MoEModel
from moe.train.health.expert_load import ExpertLoad, load
from moe.train.health.spikes import SpikeCounter

IGNORED = -100
OF_LAYERS: dict[str, Callable[[list[float]], float]] = {  # how the layers' metrics become the model's
    "train/balance_loss": fmean,
    "train/router_z_loss": fmean,
    "experts/load_max": max,
    "experts/load_min": min,
    "experts/max_vio": max,
    "experts/dead": sum,
    "experts/idle_steps": max,
    "router/entropy": fmean,
    "router/logit_max": max,
}


class StepLosses(Callback):
    def __init__(self, model: MoEModel, *, tokens_per_step: int, log: Every):
        self.model = model
        self.tokens_per_step = tokens_per_step
        self.log = log
        self.spikes = SpikeCounter()
        self.experts = ExpertLoad(*model.expert_share_LE.shape)
        self._first = True

    def state_dict(self) -> dict[str, Any]:
        return {"spikes": self.spikes.state_dict(), "experts": self.experts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.spikes.load_state_dict(state["spikes"])
        self.experts.load_state_dict(state["experts"])

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
        self.model.start_sums()  # also where a batch is tried again with a smaller microbatch

    def after_train_batch(self, state: State, logger: Logger) -> None:
        sums = self.model.sums
        flat = torch.cat([value.double().flatten() for value in sums.values()])
        dist.all_reduce(flat, reduce_operation="SUM")
        parts = flat.split([value.numel() for value in sums.values()])
        total = {name: part.view(value.shape) for (name, value), part in zip(sums.items(), parts, strict=True)}
        self.spikes.add(total["nll"] / total["targets"])
        self.experts.add(total["counts_LE"])
        if self.log.due(int(state.timestamp.batch) + 1):
            logger.log_metrics(self._metrics(total, int(state.timestamp.batch) + 1))
        elif self._first:  # for the console; the next row of the logs has its own
            loss = (total["nll"] / total["targets"]).item()
            logger.log_metrics({"train/loss": loss, "train/perplexity": math.exp(min(loss, 700))})
        self._first = False
        self.model.expert_share_LE.copy_(total["counts_LE"] / total["counts_LE"].sum(dim=1, keepdim=True))

    def _metrics(self, total: dict[str, Tensor], step: int) -> dict[str, Any]:
        previous_LE = self.model.expert_share_LE
        n_layers, n_experts = previous_LE.shape
        assert self.model.logit_max_L is not None
        logit_max_L = self.model.logit_max_L.double()
        dist.all_reduce(logit_max_L, reduce_operation="MAX")
        load_LE = load(total["counts_LE"])
        interval = self.experts.interval()
        layers = {
            "train/balance_loss": n_experts * (previous_LE * total["prob_LE"]).sum(1) / self.tokens_per_step,
            "train/router_z_loss": total["router_z_L"] / self.tokens_per_step,
            "experts/load_max": load_LE.amax(1),
            "experts/load_min": load_LE.amin(1),
            "experts/max_vio": interval["max_vio"],
            "experts/dead": interval["dead"],
            "experts/idle_steps": interval["idle_steps"],
            "router/entropy": total["entropy_L"] / self.tokens_per_step,
            "router/logit_max": logit_max_L,
        }
        whole = [total["nll"] / total["targets"], total["z"] / total["targets"]]
        counted = [self.spikes.state["spikes"][0].double(), self.spikes.state["seen"][0].double()]
        columns = [torch.stack([*whole, *counted]), *(value.double() for value in layers.values())]
        values = torch.cat([*columns, interval["load"].flatten()]).tolist()
        loss, z_loss, spikes, seen = values[:4]
        metrics: dict[str, Any] = {
            "train/loss": loss,
            "train/perplexity": math.exp(min(loss, 700)),
            "train/z_loss": z_loss,
            "train/loss_spikes": spikes,
            "train/spike_score": spikes / max(seen, 1),
            "tokens": step * self.tokens_per_step,
        }
        values = values[4:]
        for name in layers:
            of_layers, values = values[:n_layers], values[n_layers:]
            metrics[name] = OF_LAYERS[name](of_layers)
            metrics |= {f"{name}/layer_{layer:02d}": value for layer, value in enumerate(of_layers)}
        for layer in range(n_layers):
            loads = values[layer * n_experts : (layer + 1) * n_experts]
            metrics[f"experts/load/layer_{layer:02d}"] = [round(load, 3) for load in loads]
        return metrics
