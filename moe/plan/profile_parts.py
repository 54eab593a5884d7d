"""The parts of a block, each timed alone: forward and backward on inputs of the shape of a step's microbatch.

Decisions:
- Times are multiplied by layers and microbatches. With `compile` the parts are compiled alone, so that fusion over
  their borders shows as a smaller rest (it may fall below 0).
- The inputs are random: their experts are chosen about evenly.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from composer.core import Precision
from composer.core.precision import get_precision_context
from torch import Tensor

from moe.config import Config
from moe.config.steps import Steps
from moe.model.attention import rope_table
from moe.model.experts import moe_experts
from moe.model.flops import ParameterCount, count_parameters, model_shape
from moe.model.loss import linear_cross_entropy
from moe.model.precision import compute_dtype
from moe.train.composer_model import MoEModel
from moe.train.inputs import Inputs


@dataclasses.dataclass(frozen=True)
class Row:
    """One part of a step. `saved`: bytes kept for the backward pass of one microbatch, over all layers."""

    part: str
    seconds: float
    flops: float = 0.0
    saved: int = 0


def part_flops(count: ParameterCount, *, attention_width: int, seq_len: int, top_share: float) -> dict[str, float]:
    """Forward and backward FLOPs per token by part; their sum is `flops_per_token`. dense: MLPs of dense layers.

    attention_width: layers x heads x width of a head. top_share: top_k / n_experts.
    """
    return {
        "attention": 6.0 * count.attention + 6.0 * attention_width * seq_len,
        "router": 6.0 * count.router,
        "experts": 6.0 * (count.experts * top_share + count.shared),
        "dense": 6.0 * count.dense,
        "loss": 6.0 * (count.head or count.embedding),
    }


def part_rows(
    config: Config,
    inputs: Inputs,
    model: MoEModel,
    batch: dict[str, Tensor],
    microbatch: int,
    say: Callable[[str], None],
) -> list[Row]:
    net, settings = model.transformer, config.model
    attn: Any = net.blocks[0].attn
    moe = net.expert_layers[0]
    device = model.device
    part = {key: value[:microbatch] for key, value in batch.items()}
    tokens_BS = part["tokens"]
    with get_precision_context(Precision(config.precision)):
        x_BSD = torch.randn(*tokens_BS.shape, settings.d_model, device=device)
        dtype = compute_dtype(x_BSD)
        cos, sin = rope_table(seq_len=tokens_BS.shape[1], head_dim=net.rotary_dim, theta=net.rope_theta, device=device)
        documents = net._documents(tokens_BS, part.get("document_ends"), dtype) if settings.document_mask else None
    rope, x_TD = (cos.to(dtype), sin.to(dtype)), x_BSD.flatten(0, 1)
    with torch.no_grad():
        routing = moe.router(x_TD)
    weight_TK = routing.weight_TK.requires_grad_()

    def route(x: Tensor) -> Tensor:
        found = moe.router(x)
        return found.weight_TK.sum() + found.stats.score_E.sum() + found.stats.z

    def experts(x: Tensor) -> Tensor:
        out = moe_experts(x, weight_TK, routing.expert_TK, moe.w13, moe.w2, routing.stats.counts_E)
        return out if moe.shared is None else out + moe.shared(x)

    def loss(x: Tensor) -> Tensor:
        fused = net.loss_backend if x.is_cuda else None
        labels = part["labels"].flatten()
        return linear_cross_entropy(x, net.head_weight, labels, z_weight=settings.z_loss, fused=fused).loss

    layers, expert_layers = settings.n_layers, len(net.expert_layers)
    times = config.global_train_batch_size / microbatch
    dense: list[Any] = [block.mlp for block in net.blocks if block.moe is None]
    wanted: list[tuple[str, Callable[[Tensor], Tensor], Tensor, int]] = [
        ("attention", lambda x: attn(x, rope, documents), x_BSD, layers),
        ("router", route, x_TD, expert_layers),
        ("experts", experts, x_TD, expert_layers),
        *([("dense", dense[0], x_TD, len(dense))] if dense else []),
        ("loss", loss, x_TD, 1),
    ]
    shape = model_shape(settings, inputs.vocab_size)
    flops = part_flops(
        count_parameters(**shape),
        attention_width=layers * settings.n_heads * net.head_dim,
        seq_len=config.max_seq_len,
        top_share=settings.top_k / settings.n_experts,
    )
    tokens = Steps.of(config).tokens_per_step
    rows = []
    for name, function, x, repeats in wanted:
        say(f"timing the {name} of one {'microbatch' if repeats == 1 else 'layer'} alone ...")
        if net.compiled and name != "loss":
            function = torch.compile(function)
        seconds, saved = _time_part(function, x.clone().requires_grad_(), config.precision)
        rows.append(Row(name, seconds * repeats * times, flops[name] * tokens, saved * repeats))
    model.zero_grad(set_to_none=True)
    return rows


def _time_part(function: Callable[[Tensor], Tensor], x: Tensor, precision: str) -> tuple[float, int]:
    """Seconds of forward and backward, median of 5; bytes that are kept in between, without the input and weights."""
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if not isinstance(value, torch.nn.Parameter) and storage.data_ptr() != x.untyped_storage().data_ptr():
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    def once() -> None:
        with get_precision_context(Precision(precision)):
            out = function(x)
        out.backward(torch.ones_like(out))
        wait(x.device)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        once()
    once()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), sum(kept.values())


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
