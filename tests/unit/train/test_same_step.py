"""The same step twice from one state, and round trips of a checkpoint: compared by bits."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moe.optim.groups import build_groups
from moe.optim.muon import Muon
from moe.train.checkpointing.checkpoints import load_state, write_checkpoint
from tests.unit.train.health.test_expert_load import Steps, make_batch, make_model


def bits(tensor: torch.Tensor) -> tuple:
    return tensor.dtype, tuple(tensor.shape), tensor.detach().contiguous().flatten().view(torch.uint8).tolist()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("microbatch", [16, 5])
def test_the_same_step_twice_from_one_state_gives_the_same_bits(microbatch: int, checkpointing: bool) -> None:
    """E3: gradients, buffers, random state, weights after it, and what the optimizer keeps."""
    steps = Steps(make_model(checkpointing=checkpointing))
    model = steps.model
    model.transformer.dropout = 0.2
    for block in model.transformer.blocks:
        block.dropout = 0.2
    optimizer = Muon(build_groups(model.transformer, name="muon", lr=1e-2, weight_decay=0.1))

    def step(number: int) -> dict[str, object]:
        optimizer.zero_grad()
        steps.run(make_batch(number), microbatch)
        found: dict[str, object] = {f"grad {n}": bits(p.grad) for n, p in model.named_parameters()}
        optimizer.step()
        found |= {f"state {name}": bits(value) for name, value in model.state_dict().items()}
        found |= {f"buffer {name}": bits(value) for name, value in model.named_buffers()}
        for name, p in model.named_parameters():
            found |= {f"{key} {name}": bits(value) for key, value in optimizer.state[p].items()}
        return {**found, "random": bits(torch.get_rng_state())}

    torch.manual_seed(3)
    step(0)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    first = step(1)
    step(2)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    again = step(1)
    assert [key for key in first if first[key] != again[key]] == [] and first.keys() == again.keys()
    torch.manual_seed(4)  # other dropout: what is compared can differ
    assert step(1) != first


def test_a_checkpoint_gives_back_every_bit(tmp_path: Path) -> None:
    """E5: -0.0, infinities, the smallest numbers and what a NaN carries, in every type that is kept."""
    odd = torch.tensor([-0x80000000, 0, 1, -0x7FFFFFFF, 0x7F800000, 0x7FC12345, -0x3EDCBB], dtype=torch.int32)
    state = {
        "fp32": odd.clone().view(torch.float32),
        "bf16": odd.clone().view(torch.bfloat16),
        "fp64": torch.cat([odd, odd[:1]]).view(torch.float64),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "none": torch.empty(0, 3),
    }
    folder = write_checkpoint(tmp_path, 3, {"state": state}, {"tokens": 1, "config": {}})
    for mmap in (False, True):
        found = load_state(folder / "state.pt", mmap=mmap)["state"]
        assert {name: bits(value) for name, value in found.items()} == {n: bits(v) for n, v in state.items()}
    assert bits(torch.tensor([0.0])) != bits(torch.tensor([-0.0]))


def test_dropout_differs_between_ranks_and_steps_and_is_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """E11: of the same rows, under the callback that seeds a step."""
    from composer.utils import dist

    from moe.train.callbacks.seeding import StepSeed

    steps, batch = Steps(make_model()), make_batch(0)
    steps.model.transformer.dropout = 0.2
    for block in steps.model.transformer.blocks:
        block.dropout = 0.2

    def loss(rank: int, step: int) -> float:
        monkeypatch.setattr(dist, "get_global_rank", lambda: rank)
        StepSeed(17).before_train_batch(SimpleNamespace(timestamp=SimpleNamespace(batch=step)), None)
        return steps.model(batch).nll.item()

    at = [(rank, step) for rank in range(4) for step in range(3)]
    first = [loss(*place) for place in at]
    assert len(set(first)) == len(at)
    assert [loss(*place) for place in at] == first
