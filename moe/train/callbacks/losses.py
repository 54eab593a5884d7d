"""Counts what the global batch holds before a step, and adds up the losses of all microbatches and ranks after it.

| metric | meaning |
|---|---|
| `train/loss` | mean negative log likelihood per target token of the step's global batch, nats |
| `train/perplexity` | its exponential |
| `train/loss_spikes` | steps so far whose loss was 6 standard deviations above the mean of the 128 before |
| `train/spike_score` | their share of all steps |
| `train/z_loss` | mean squared log-partition of the output logits, unweighted |
| `train/balance_loss` | load-balance loss, mean over layers, unweighted, whatever the rule; 1 is perfect balance |
| `train/router_z_loss` | router z-loss, mean over layers, unweighted |
| `experts/load_max`, `load_min` | an expert's largest and smallest load over its fair share, worst layer |
| `experts/max_vio` | largest load over the fair share, less 1, over all steps since the last row; worst layer |
| `experts/dead` | experts with less than 1% of their fair share since the last row, all layers |
| `experts/idle_steps` | steps in a row in which an expert got less than 1% of its fair share; longest |
| `router/entropy` | entropy of the router's scores as shares, nats, mean over tokens and layers |
| `router/logit_max` | largest router logit of the step |
| `tokens` | tokens trained on so far |

Each of these but the first four, `train/z_loss` and `tokens` is logged for every layer of experts too, as NAME/layer_07
with the block's own number, and `experts/load/layer_07` is the list of the layer's loads since the last row, one an
expert. Dense blocks are in none of them.

All of it stays on the device between two rows; a row costs one wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist

from moe.config.times import Every
from moe.model import LossParts
from moe.model.router import LayerMetric
from moe.train.composer_model import MoEModel, with_global_sizes
from moe.train.health.expert_load import ExpertLoad, load
from moe.train.health.spikes import SpikeCounter

IGNORED = -100


class StepLosses(Callback):
    """skipped: whether the step's update was skipped, asked at its end; it is no step of the balance rule then."""

    def __init__(
        self, model: MoEModel, *, tokens_per_step: int, log: Every, skipped: Callable[[], bool] = lambda: False
    ):
        self.model = model
        self.skipped = skipped
        self.tokens_per_step = tokens_per_step
        self.log = log
        self.spikes = SpikeCounter()
        routers = model.transformer.routers
        self.layers = [f"layer_{number:02d}" for number in model.transformer.expert_layer_numbers]
        self.experts = ExpertLoad(len(routers), routers[0].n_experts)
        self._total: LossParts | None = None  # of the step's microbatches on this rank, at its end on all
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
        samples = len(labels) * dist.get_world_size()
        state.batch = with_global_sizes(state.batch, targets=targets, tokens=self.tokens_per_step, samples=samples)

    def before_train_batch(self, state: State, logger: Logger) -> None:
        self._total = None  # also where a batch is tried again with a smaller microbatch

    def after_loss(self, state: State, logger: Logger) -> None:
        assert isinstance(state.outputs, LossParts)
        parts = state.outputs.detach()
        self._total = parts if self._total is None else self._total + parts

    def after_train_batch(self, state: State, logger: Logger) -> None:
        assert self._total is not None
        self._total = total = self._total.all_reduce()
        self.spikes.add(total.nll / total.targets)
        self.experts.add(total.routers.counts_E)
        if self.log.due(int(state.timestamp.batch) + 1):
            logger.log_metrics(self._metrics(total, int(state.timestamp.batch) + 1))
        elif self._first:  # for the console; the next row of the logs has its own
            loss = (total.nll / total.targets).item()
            logger.log_metrics({"train/loss": loss, "train/perplexity": math.exp(min(loss, 700))})
        self._first = False

    def batch_end(self, state: State, logger: Logger) -> None:
        if self._total is not None and not self.skipped():
            self.model.balance.end_step(self._total.routers, self.model.transformer.routers)
        self._total = None

    def _metrics(self, total: LossParts, step: int) -> dict[str, Any]:
        load_LE = load(total.routers.counts_E)
        n_layers, n_experts = load_LE.shape
        interval = self.experts.interval()
        layers = {
            **self.model.balance.metrics(total.routers, self.tokens_per_step),
            **total.routers.metrics(self.tokens_per_step),
            "experts/load_max": LayerMetric(load_LE.amax(1), max),
            "experts/load_min": LayerMetric(load_LE.amin(1), min),
            "experts/max_vio": LayerMetric(interval["max_vio"], max),
            "experts/dead": LayerMetric(interval["dead"], sum),
            "experts/idle_steps": LayerMetric(interval["idle_steps"], max),
        }
        means = [total.nll / total.targets, total.z / total.targets]
        counted = [self.spikes.state["spikes"][0].double(), self.spikes.state["seen"][0].double()]
        columns = [torch.stack([*means, *counted]), *(metric.value_L.double() for metric in layers.values())]
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
        for name, metric in layers.items():
            of_layers, values = values[:n_layers], values[n_layers:]
            metrics[name] = metric.over_layers(of_layers)
            metrics |= {f"{name}/{layer}": value for layer, value in zip(self.layers, of_layers, strict=True)}
        for number, layer in enumerate(self.layers):
            loads = values[number * n_experts : (number + 1) * n_experts]
            metrics[f"experts/load/{layer}"] = [round(load, 3) for load in loads]
        return metrics
