"""The ComposerModel around the transformer: turns its sums into one loss that no split of the batch can change.

Decisions:
- Every term is normalised by what the *global* batch holds, known before the first microbatch, so the gradient is the
  same for any number of ranks and microbatches. What it holds comes with the batch (`with_global_sizes`); a batch
  without it is the global one. Composer then scales a microbatch by its share of the rank's sequences and DDP/FSDP
  average over ranks; `loss` undoes both.
- `loss` keeps nothing. What steps add up is the callbacks' business (moe/train/callbacks/losses.py).
- No logits leave the transformer, so metrics add up sums and counts.
- Bits per byte counts the bytes of the target tokens; the nats of an EOS count too, as the end of a document must be
  predicted with any tokenizer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import torch
from composer.core import Precision
from composer.core.precision import get_precision_context
from composer.models import ComposerModel
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

from moe.config import Config, ModelConfig
from moe.data.text.tokenizer import token_bytes
from moe.model import LossParts, Transformer
from moe.model.balance import RULES, Balance
from moe.model.loss import target_bytes
from moe.train.compiling import check_compiler, wants_compile
from moe.train.inputs import Inputs

LOSS_SETTINGS = ("balance_loss", "balance_rate", "router_z_loss")  # of ModelConfig, for MoEModel, not for Transformer


class TokenLoss(Metric):
    """Mean negative log likelihood per target token in nats; exact for any split of the data over batches and ranks."""

    full_state_update = False
    nll: Tensor
    targets: Tensor

    def __init__(self, perplexity: bool = False):
        super().__init__()
        self.perplexity = perplexity
        self.add_state("nll", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("targets", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, targets: Tensor) -> None:
        self.nll += nll.double()
        self.targets += targets

    def compute(self) -> Tensor:
        loss = self.nll / self.targets
        return loss.exp() if self.perplexity else loss


class BitsPerByte(TokenLoss):
    """The same in bits per byte of the text, which compares models of different tokenizers; `targets` counts bytes."""

    def compute(self) -> Tensor:
        return self.nll / self.targets / math.log(2)


def with_global_sizes(batch: dict[str, Any], *, targets: Tensor, tokens: int, samples: int) -> dict[str, Any]:
    """A rank's batch with what the global batch holds, in a form that is still right for any part of its rows.

    targets: int64 scalar. samples: rows over all ranks, each of which has as many.
    """
    targets_B = targets.expand(len(batch["tokens"]))
    return {**batch, "global_targets": targets_B, "global_tokens": tokens, "global_samples": samples}


class MoEModel(ComposerModel):
    """`forward` takes {"tokens", "labels"} (int64 [B, S], labels unshifted, -100 ignored) and returns `LossParts`.
    "document_ends" (see `Transformer.forward`) may be there too.

    balance: one of moe.model.balance.RULES. router_z_loss: weight of the router z-loss, summed over layers.
    token_bytes: bytes of text each token stands for; None where the tokenizer does not tell, and then bits per byte are
    not measured.
    """

    bytes_V: Tensor

    def __init__(
        self,
        transformer: Transformer,
        *,
        balance: Balance,
        router_z_loss: float,
        token_bytes: list[int] | None = None,
    ):
        super().__init__()
        self.transformer = transformer
        self.balance = balance
        self.router_z_loss = router_z_loss
        self.counts_bytes = token_bytes is not None
        self.register_buffer("bytes_V", torch.tensor(token_bytes or [0]), persistent=False)
        # Buffers are the same on all ranks by what is computed of them: DDP need not send them in every forward pass.
        buffers = [name for name, _ in self.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, buffers)

    @property
    def device(self) -> torch.device:
        return self.bytes_V.device

    def forward(self, batch: dict[str, Tensor]) -> LossParts:
        return self.transformer(batch["tokens"], batch["labels"], document_ends_BM=batch.get("document_ends"))

    def loss(self, outputs: LossParts, batch: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """{"total": the mean loss to differentiate}. Of a microbatch with global sizes: its part of the global batch's
        loss, so scaled that the parts' mean over all samples is that loss.
        """
        samples = len(batch["tokens"])
        targets = batch["global_targets"][0] if "global_targets" in batch else outputs.targets
        tokens = batch.get("global_tokens", batch["tokens"].numel())
        balance = self.balance.loss(outputs.routers, tokens)
        router_z = outputs.routers.z.sum() / tokens
        total = outputs.loss / targets.clamp(min=1) + balance + self.router_z_loss * router_z
        return {"total": total * (batch.get("global_samples", samples) / samples)}

    def mean_loss(self, batch: dict[str, Tensor], precision: str) -> tuple[LossParts, Tensor]:
        """Forward pass of a microbatch that is the full global batch, outside of a Trainer: its parts, and the mean
        loss to differentiate. precision: Composer's name of it, e.g. amp_bf16.
        """
        with get_precision_context(Precision(precision)):
            parts = self(batch)
            return parts, self.loss(parts, batch)["total"]

    def eval_forward(self, batch: dict[str, Tensor], outputs: Any = None) -> LossParts:
        return outputs if outputs is not None else self.forward(batch)

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        if is_train:
            return {}
        metrics: dict[str, Metric] = {"loss": TokenLoss(), "perplexity": TokenLoss(perplexity=True)}
        return {**metrics, "bits_per_byte": BitsPerByte()} if self.counts_bytes else metrics

    def update_metric(self, batch: Any, outputs: LossParts, metric: Metric) -> None:
        if isinstance(metric, BitsPerByte):
            metric.update(outputs.nll, target_bytes(batch["labels"], self.bytes_V))
        else:
            metric.update(outputs.nll, outputs.targets)


def build_transformer(config: ModelConfig, *, vocab_size: int, eos_id: int, seed: int, **kwargs: Any) -> Transformer:
    """The model with its initial weights, the same on every rank."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in LOSS_SETTINGS}
    return Transformer(vocab_size=vocab_size, eos_id=eos_id, seed=seed, **settings, **kwargs)


def build_model(config: Config, inputs: Inputs, *, on_meta: bool = False) -> MoEModel:
    """With its initial weights, compiled where `compile` says so.

    on_meta: the transformer has no memory yet; shard_transformer makes this rank's share.
    Raises InputError where it is to be compiled and cannot.
    """
    with torch.device("meta") if on_meta else contextlib.nullcontext():
        transformer = build_transformer(
            config.model,
            vocab_size=inputs.vocab_size,
            eos_id=inputs.eos_id,
            seed=config.seed,
            activation_checkpointing=config.activation_checkpointing,
        )
    model = MoEModel(
        transformer,
        balance=RULES[config.model.balance](
            n_layers=len(transformer.expert_layers),
            n_experts=config.model.n_experts,
            weight=config.model.balance_loss or 0.0,
            rate=config.model.balance_rate,
        ),
        router_z_loss=config.model.router_z_loss,
        token_bytes=token_bytes(inputs.tokenizer),
    )
    if wants_compile(config.compile, on_gpu=torch.cuda.is_available()):
        check_compiler(config.compile)
        transformer.compile_blocks()
    return model
