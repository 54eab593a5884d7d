"""Which size a run has: a shape of a wanted number of parameters, and the largest that a card and a time allow.

- Shapes: heads of 64; a width of a multiple of 128; 4 key-value heads, or as many of fewer as divide the heads; a layer
  for each 64 of width (the yamls have 64 to 77); as many experts as in the config it is given, their width what the
  number of parameters asks for: a token's experts have twice to eight times the model's together. Of several widths
  that can, the one where they are nearest to 16/3 of it.
- No larger than a twentieth of the run's tokens, unless that is asked for: 20 tokens a parameter, as the yamls.
- Several GPUs hold the model each, or divide it (FSDP2) where they cannot. Where a step does not fit, blocks are
  computed again in the backward pass.
- Time at moe.plan.estimate.MFU of the card's peak in the run's precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from moe.config import Config, ModelConfig
from moe.model.flops import count_parameters, model_shape
from moe.model.step import make_step
from moe.plan.cluster import shared_bytes
from moe.plan.estimate import MFU, find_work, gpu_memory, largest_microbatch
from moe.plan.gpus import Gpu

HEAD_DIM, WIDTH, LAYER, HIDDEN = 64, 128, 64, 64  # a head; steps of the width; width for each layer; steps of experts
MOST_KV_HEADS, MOST_WIDTH = 4, 16_384
NARROW, USUAL, WIDE = 2, 16 / 3, 8  # of a token's experts together, times the width
TOKENS_PER_PARAMETER = 20
FINEST = 1.04  # between two sizes that are tried
SMALLEST = 3_000_000


@dataclass(frozen=True)
class Fit:
    """How a run fits on its GPUs. microbatch: 0 where it does not; memory: bytes of one sequence's step then."""

    microbatch: int
    checkpointing: bool
    sharded: bool
    memory: int
    seconds: float


@lru_cache(maxsize=4096)
def shape_for(model: ModelConfig, vocab_size: int, wanted: int, *, active: bool) -> ModelConfig:
    """`model` in the shape whose parameters, all or those active per token, are nearest to `wanted`."""

    def size(shape: ModelConfig) -> int:
        count = count_parameters(**model_shape(shape, vocab_size))
        return count.active if active else count.total

    def missed(shape: ModelConfig) -> float:
        return abs(math.log(size(shape) / wanted))

    found = []
    for width in range(WIDTH, MOST_WIDTH + 1, WIDTH):
        thin = _shape(model, width, 0)
        each = size(_shape(model, width, HIDDEN)) - size(thin)
        steps = round((wanted - size(thin)) / each)
        least, most = -(-NARROW * width // (model.top_k * HIDDEN)), WIDE * width // (model.top_k * HIDDEN)
        found.append(_shape(model, width, HIDDEN * min(most, max(least, steps))))
        if size(_shape(model, width, HIDDEN * least)) > wanted:
            break  # wider ones are all too large
    near = min(map(missed, found))
    return min(
        (shape for shape in found if missed(shape) <= near + 0.02),
        key=lambda shape: abs(shape.top_k * shape.expert_hidden / shape.d_model - USUAL),
    )


def _shape(model: ModelConfig, width: int, expert_hidden: int) -> ModelConfig:
    n_heads = width // HEAD_DIM
    return replace(
        model,
        d_model=width,
        n_layers=max(1, round(width / LAYER)),
        n_heads=n_heads,
        n_kv_heads=max(heads for heads in range(1, MOST_KV_HEADS + 1) if n_heads % heads == 0),
        head_dim=None,
        expert_hidden=expert_hidden,
    )


def least_seconds(config: Config, vocab_size: int, gpu: Gpu, n_gpus: int) -> float:
    """What a run takes that computes no block again."""
    peak = 1e12 * (gpu.fp32 if config.precision == "fp32" else gpu.bf16)
    return find_work(config, vocab_size).flops / (n_gpus * peak * MFU)


def find_fit(config: Config, vocab_size: int, gpu: Gpu, n_gpus: int) -> Fit:
    """The way that costs least: each GPU the model, else divided, else with blocks computed again; never less of these
    than the config asks for.
    """
    batch, seconds = config.global_train_batch_size // n_gpus, least_seconds(config, vocab_size, gpu, n_gpus)
    for checkpointing, sharded in ((False, False), (False, True), (True, False), (True, True)):
        if config.activation_checkpointing > checkpointing or (config.parallelism.fsdp2 and n_gpus > 1) > sharded:
            continue  # asked for by the config
        if sharded and n_gpus == 1:
            continue
        step = make_step(config, vocab_size, n_gpus=n_gpus if sharded else 1, microbatch=1)
        step = replace(step, activation_checkpointing=checkpointing, accumulated=batch > 1)
        shared = shared_bytes(step, n_gpus if sharded else 1, n_gpus)
        memory = gpu_memory(step).total + shared
        if microbatch := largest_microbatch(step, gpu.memory - shared, batch):
            return Fit(microbatch, checkpointing, sharded, memory, seconds * (4 / 3 if checkpointing else 1))
    return Fit(0, checkpointing, sharded, memory, seconds)


def sizes(most: float) -> Iterator[int]:
    """Numbers of parameters from `most` down, in small steps."""
    size = most
    while size >= SMALLEST:
        yield int(size)
        size /= FINEST


def largest(
    build: Callable[[int], Config], vocab_size: int, gpu: Gpu, n_gpus: int, *, most: float, seconds: float | None
) -> Config | None:
    """The largest that fits; None where none does. build: the config with about so many parameters."""
    last = None
    for wanted in sizes(most):
        config = build(wanted)
        if config.model == last:
            continue  # the shapes are coarser than the sizes, and have a smallest
        last = config.model
        if seconds is not None and least_seconds(config, vocab_size, gpu, n_gpus) > seconds:
            continue
        fit = find_fit(config, vocab_size, gpu, n_gpus)
        if fit.microbatch and (seconds is None or fit.seconds <= seconds):
            return config
    return None
