"""Muon on parameters that are divided among real ranks (gloo), against the same parameters whole."""

import math

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from moe.optim.muon import Muon
from moe.optim.norms import full_norms
from tests.ranks import on_ranks

MATRICES = ((24, 16), (7, 40), (24, 16), (1, 5), (24, 16))  # three of one shape, rows that do not divide evenly
EXPERTS = ((3, 16, 24), (2, 8, 8))
APART = ((3, 16, 24), (3, 16, 24), (3, 16, 24), (2, 8, 8))  # experts of which each rank has a part
ALONG = (0,) * len(MATRICES + EXPERTS) + (1, 1, 1, 2)
OTHERS = ((9, 4), (5,))


def divided(value, mesh, dim=0):
    """Where the mesh has two dimensions among each replica's ranks alone, as HSDP does."""
    return distribute_tensor(value, mesh, [Replicate()] * (mesh.ndim - 1) + [Shard(dim)])


def parameters(mesh=None):
    g = torch.Generator().manual_seed(0)
    values = [torch.randn(*shape, generator=g) for shape in MATRICES + EXPERTS + APART + OTHERS]
    dims = (*ALONG, *[0] * len(OTHERS))
    return [
        nn.Parameter(value if mesh is None else divided(value, mesh, dim))
        for value, dim in zip(values, dims, strict=True)
    ]


def optimizer(params, momentum_dtype="fp32"):
    n, m = len(MATRICES), len(ALONG)
    muon = {"kind": "muon", "lr": 0.02, "momentum_dtype": momentum_dtype}
    return Muon(
        [
            {"params": params[:n], **muon},
            {"params": params[n:m], "split": 2, **muon},
            {"params": params[m:], "kind": "adamw", "lr": 0.02},
        ]
    )


def set_gradients(params, step, mesh=None):
    g = torch.Generator().manual_seed(100 + step)
    for p in params:
        grad = torch.randn(p.shape, generator=g)
        if p.ndim == 3 and step:
            grad[step % len(grad)] = 0  # an expert without tokens
            grad[(step + 1) % len(grad), :8] = grad[(step + 1) % len(grad), :, :4] = 0  # one that a rank sees none of
        p.grad = grad if mesh is None else divided(grad, mesh, p.placements[-1].dim)


@pytest.mark.parametrize("momentum_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(2,), (4,), (2, 2)])
def test_a_sharded_parameter_is_updated_as_a_whole_one(shape, momentum_dtype) -> None:
    """A18: with 4 ranks some hold no expert, or one without tokens, and none of some matrices' rows. Of two dimensions
    the first is HSDP's replicas.
    """

    def work(rank):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
        whole, shards = parameters(), parameters(mesh)
        one, many = optimizer(whole, momentum_dtype), optimizer(shards, momentum_dtype)
        for step in range(3):
            set_gradients(whole, step)
            set_gradients(shards, step, mesh)
            one.update_norms, many.update_norms = {}, {}
            one.step()
            many.step()
        for p, shard in zip(whole, shards, strict=True):
            torch.testing.assert_close(shard.full_tensor(), p.detach(), atol=1e-6, rtol=1e-6)
            (factor, norm), (same, alone) = many.update_norms[shard], one.update_norms[p]
            torch.testing.assert_close(full_norms([norm], [shard])[0], alone, atol=1e-6, rtol=1e-5)
            assert factor == same
            for key, value in one.state[p].items():
                found = many.state[shard][key]
                found = found if key == "step" else found.full_tensor()
                torch.testing.assert_close(found, value, atol=1e-6, rtol=1e-6)
                assert found.dtype == value.dtype

    on_ranks(math.prod(shape), work)


def test_experts_are_updated_without_a_word_between_the_ranks() -> None:
    def work(rank):
        mesh = init_device_mesh("cpu", (2,))
        shards = parameters(mesh)
        n, m = len(MATRICES), len(MATRICES + EXPERTS)
        opt = optimizer(shards)
        set_gradients(shards, 0, mesh)
        for p in shards[:n] + shards[m:]:
            p.grad = None
        with CommDebugMode() as talk:
            opt.step()
        assert talk.get_total_counts() == 0
        set_gradients(shards[:n], 0, mesh)
        with CommDebugMode() as talk:
            opt.step()
        assert talk.get_total_counts() == 6, "there and back for each of three shapes"
        for p in shards[:n]:
            p.grad = None
        set_gradients(shards[m:], 0, mesh)
        with CommDebugMode() as talk:
            opt.step()
        assert talk.get_total_counts() == 1 + 2 * 4, (
            "experts that have parts: which have gradients, then there and back"
        )

    on_ranks(2, work)


def test_the_matrices_of_one_shape_are_shared_out_among_the_ranks(monkeypatch) -> None:
    from moe.optim import muon

    def work(rank):
        mesh, seen = init_device_mesh("cpu", (2,)), []
        plain = muon.orthogonalize
        muon.orthogonalize = lambda x: seen.append(tuple(x.shape)) or plain(x)
        shards = parameters(mesh)
        set_gradients(shards, 0, mesh)
        optimizer(shards).step()
        assert ((2, 24, 16), (1, 24, 16))[rank] in seen, seen

    on_ranks(2, work)
