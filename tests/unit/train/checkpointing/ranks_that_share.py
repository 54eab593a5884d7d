"""A model that ranks (gloo) share, trained by steps, saved and loaded together."""

from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from moe.model import Transformer
from moe.model.balance import BalanceLoss
from moe.optim.groups import build_groups
from moe.optim.muon import Muon
from moe.train.checkpointing import together
from moe.train.checkpointing.checkpoints import read_checkpoint
from moe.train.checkpointing.contents import full_content
from moe.train.checkpointing.host_memory import HostMemory
from moe.train.checkpointing.parts import Parts
from moe.train.checkpointing.rank_state import load_own, own_state
from moe.train.checkpointing.remote import RemoteRun
from moe.train.checkpointing.save_error import explained
from moe.train.checkpointing.together import Save, SharedWriter
from moe.train.distributed.sharding import shard_transformer
from tests.tiny import EVERY_OPTION, SHAPE

MANIFEST = {"tokens": 5, "config": {}, "data": "d", "eos_id": 0, "vocab_size": 97, "tokenizer": None}


def build(seed: int, ranks: int, replicas: int = 1) -> tuple[nn.Module, Muon]:
    """A model as the trainer has it, with 3 experts, which are divided by their rows, and 97 rows of the embedding."""
    settings = {**SHAPE, **EVERY_OPTION, "n_experts": 3, "balance": "sign"}
    model = nn.Module()
    model.transformer = Transformer(vocab_size=97, eos_id=0, seed=seed, **settings)
    model.balance = BalanceLoss(n_layers=2, n_experts=3, weight=0.01)
    g = torch.Generator().manual_seed(seed)
    for buffer in model.buffers():
        buffer.copy_(torch.rand(buffer.shape, generator=g))
    if ranks > 1:
        shard_transformer(model.transformer, world_size=ranks, on_gpu=False, replicas=replicas)
    groups = build_groups(model.transformer, name="muon", lr=0.1, weight_decay=0.0, momentum_dtype="bf16")
    return model, Muon(groups)


def step(model: nn.Module, optimizer: Muon, seed: int) -> None:
    """With random gradients; of replicas the same, as they are after their mean was taken."""
    for number, p in enumerate(model.parameters()):
        own = p.to_local() if isinstance(p, DTensor) else p
        place = p.device_mesh.get_coordinate()[-1] if isinstance(p, DTensor) else 0
        g = torch.Generator().manual_seed(1000 * seed + 10 * number + place)
        grad = torch.randn(own.shape, generator=g)
        p.grad = (
            DTensor.from_local(grad, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
            if isinstance(p, DTensor)
            else grad
        )
    optimizer.step()


def complete(model: nn.Module, optimizer: Muon) -> dict[str, torch.Tensor]:
    """All tensors of both, by name. A collective."""

    def full(value: torch.Tensor) -> torch.Tensor:
        return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()

    found = {f"model.{name}": full(value) for name, value in model.state_dict().items()}
    for name, p in model.named_parameters():
        found |= {f"optimizer.{key}.{name}": full(value) for key, value in optimizer.state[p].items()}
    return found


def tensors_of(content: dict) -> dict[str, torch.Tensor]:
    """The same of a checkpoint's content."""
    found = {f"model.{name}": value for name, value in content["model"].items()}
    for name, entries in content["optimizers"]["Muon"]["state"].items():
        found |= {f"optimizer.{key}.{name}": value for key, value in entries.items()}
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def save(folder: Path, number: int, model: nn.Module, optimizer: Muon, *, url=None, leader=False) -> together.Written:
    """One save as CheckpointSaver makes it."""
    own, rank = own_state(model, optimizer, HostMemory()), torch.distributed.get_rank()
    remote = None
    if url is not None and rank == 0:
        remote = RemoteRun(url, folder, report=print)
    writer = SharedWriter(folder, url=url, remote=remote, local_leader=leader or rank == 0)
    content = {"state": {"model": own.model, "optimizers": {"Muon": own.optimizer}}} if rank == 0 else None
    shared = Save(number, own.part, own.number, own.parts, own.shapes, content, MANIFEST, {"tokenizer/a": b"A"})
    explain = partial(explained, number, save_folder=folder, size=own.nbytes(), where=f"rank {rank}: ")
    return writer.write(shared, lambda size: None, explain)


def load(folder: Path, model: nn.Module, optimizer: Muon) -> None:
    found = read_checkpoint(folder)
    if found.manifest.get("tensors"):
        from moe.train.checkpointing.checkpoints import load_state

        with Parts(found.path, found.manifest) as parts:
            load_own(model, optimizer, load_state(found.state_file)["state"], parts)
    else:
        load_own(model, optimizer, full_content(found), None)
