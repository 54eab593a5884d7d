"""Norms of weights, updates and gradients that ranks share: the bits of one collective a tensor, in one for all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from moe.config import Every, parse_time
from moe.model import Transformer
from moe.optim.groups import build_groups
from moe.optim.muon import Muon
from moe.train.callbacks.gradients import GradientClipping
from moe.train.callbacks.weights import WeightNorms, kind_of
from moe.train.distributed.sharding import shard_transformer
from tests.ranks import on_ranks
from tests.tiny import EVERY_OPTION, SHAPE

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.11", reason="older torch is refused: moe.train.distributed.sharding"
)


def full(norm: torch.Tensor) -> torch.Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def of_all(tensors: list[torch.Tensor]) -> torch.Tensor:
    """torch's own, which sends each tensor's norm by itself."""
    return full(torch.nn.utils.get_total_norm(tensors))


def like(part: torch.Tensor, p: DTensor) -> DTensor:
    return DTensor.from_local(part, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())


def measure(ranks: int, replicas: int) -> None:
    """3 experts, so that of 2 ranks one holds 2 and one 1, and of 4 one none."""
    model = Transformer(vocab_size=97, eos_id=0, seed=1, **{**SHAPE, **EVERY_OPTION, "n_experts": 3})
    shard_transformer(model, world_size=ranks, on_gpu=False, replicas=replicas)
    groups = build_groups(model, name="muon", lr=0.1, weight_decay=0.0)
    optimizer, parameters = Muon(groups), dict(model.named_parameters())
    for number, p in enumerate(parameters.values()):
        g = torch.Generator().manual_seed(10 * number + p.device_mesh.get_coordinate()[-1])
        p.grad = like(torch.randn(p.to_local().shape, generator=g), p)
    logged: dict[str, Any] = {}
    logger = SimpleNamespace(log_metrics=logged.update)
    state: Any = SimpleNamespace(model=model, optimizers=[optimizer], timestamp=SimpleNamespace(batch=0))
    expected = float(of_all([p.grad for p in parameters.values()]))
    with CommDebugMode() as sent:
        GradientClipping(1e9, 5).after_train_batch(state, logger)  # type: ignore[arg-type]
    assert logged["optim/grad_norm"] == pytest.approx(expected, rel=0 if ranks // replicas == 2 else 1e-6)
    assert sent.get_total_counts() == 1
    norms = WeightNorms(model, Every(parse_time("1ba"), 1, 10))
    norms.after_train_batch(state, logger)  # type: ignore[arg-type]
    optimizer.step()
    kinds: dict[str, list[str]] = {}
    for name, p in parameters.items():
        kinds.setdefault(kind_of(name, p), []).append(name)
    update = {}
    for name, p in parameters.items():  # as one collective each: the norm of a DTensor whose parts have these norms
        factor, norm = optimizer.update_norms[p]
        part = like(torch.zeros_like(p.to_local()), p)
        if part.to_local().numel():
            part.to_local().view(-1)[0] = norm
        update[name] = factor * full(torch.linalg.vector_norm(part))
    logged.clear()
    with CommDebugMode() as sent:
        norms.batch_end(state, logger)  # type: ignore[arg-type]
    assert sent.get_total_counts() == 1
    for kind, names in kinds.items():
        size = sum(parameters[name].numel() for name in names) ** 0.5
        same = {"rel": 0 if ranks // replicas == 2 else 1e-6}
        expected = float(of_all([parameters[name].detach() for name in names]).double()) / size
        assert logged[f"weight_rms/{kind}"] == pytest.approx(expected, **same)
        expected = float(of_all([update[name] for name in names]).double()) / size
        assert logged[f"update_rms/{kind}"] == pytest.approx(expected, **same)
    assert {"embeddings", "attention", "experts", "router", "norms"} <= kinds.keys()


@pytest.mark.parametrize(("ranks", "replicas"), [(2, 1), (4, 1), (4, 2)])
def test_all_norms_of_a_step_travel_at_once_with_the_same_bits(ranks: int, replicas: int) -> None:
    """They were a collective for each tensor: 50 of the 78 of a step, of a model with 3 layers."""
    on_ranks(ranks, lambda rank: measure(ranks, replicas))


def test_a_parameter_that_belongs_nowhere_is_named():
    with pytest.raises(ValueError, match=r"blocks\.0\.memory\.weight"):
        kind_of("blocks.0.memory.weight", torch.zeros(2, 2))
