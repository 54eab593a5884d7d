"""What an optimizer keeps: through a skipped step, and from one optimizer into another that has been used."""

import copy
from types import SimpleNamespace

import pytest
import torch

from moe.model import Transformer
from moe.optim.groups import build_groups
from moe.optim.muon import Muon
from moe.train.callbacks.gradients import GradientClipping
from tests.tiny import SHAPE


def bits(value):
    """A tensor with what tells -0.0 from 0.0 and one NaN from another; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    return (value.dtype, tuple(value.shape), value.detach().cpu().contiguous().flatten().view(torch.uint8).tolist())


def kept(model, optimizer):
    """All weights and all of the optimizer's state, settings among it."""
    state = optimizer.state_dict()
    groups = [{key: bits(value) for key, value in group.items()} for group in state["param_groups"]]
    per_parameter = {i: {key: bits(value) for key, value in of.items()} for i, of in state["state"].items()}
    return {name: bits(weight) for name, weight in model.state_dict().items()}, per_parameter, groups


def make(name="muon", seed=0, **settings):
    torch.manual_seed(seed)
    model = Transformer(vocab_size=31, eos_id=0, tie_embeddings=False, **{**SHAPE, "n_layers": 1})
    return model, Muon(build_groups(model, name=name, **{"lr": 0.01, "weight_decay": 0.1, **settings}))


def step(model, optimizer, seed):
    tokens = torch.randint(1, 31, (2, 12), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    parts = model(tokens, tokens)
    (parts.loss / parts.targets).backward()
    optimizer.step()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_skipped_step_leaves_every_bit_of_weights_and_state(name, steps_before, value):
    """E4: momentum, both moments, and the count of steps that AdamW's bias correction goes by."""
    model, optimizer = make(name)
    for seed in range(steps_before):
        step(model, optimizer, seed)
    before = kept(model, optimizer)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.blocks[0].moe.w2.grad[1, 0, 0] = value
    state = SimpleNamespace(model=model, timestamp=SimpleNamespace(batch=steps_before), optimizers=[optimizer])
    clipping = GradientClipping(1.0, max_skipped_steps=5)
    clipping.after_train_batch(state, SimpleNamespace(log_metrics=lambda metrics: None))
    optimizer.step()
    assert clipping.skipped == 1
    assert kept(model, optimizer) == before
    step(model, optimizer, 7)
    assert kept(model, optimizer) != before


@pytest.mark.parametrize("momentum_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_used_optimizer_of_other_rates_goes_on_as_the_one_that_was_saved(name, momentum_dtype):
    """E6: nothing of its own steps, rates or momentum is left."""
    model, optimizer = make(name, momentum_dtype=momentum_dtype)
    for seed in range(3):
        step(model, optimizer, seed)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other, used = make(
        name, seed=5, lr=0.3, weight_decay=0.0, momentum=0.5, adamw_lr=0.7, betas=(0.5, 0.6), eps=1e-3,
        momentum_dtype={"fp32": "bf16", "bf16": "fp32"}[momentum_dtype],
    )  # fmt: skip
    for seed in range(10, 15):
        step(other, used, seed)
    other.load_state_dict(saved[0])
    used.load_state_dict(saved[1])
    assert kept(other, used) == kept(model, optimizer)
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(other, used, seed)
    assert kept(other, used) == kept(model, optimizer)


def test_what_had_no_state_when_it_was_saved_has_none_after_it_is_loaded():
    """E6's sibling: a parameter that never had a gradient starts anew, whatever the used optimizer held for it."""
    model, optimizer = make()
    model.blocks[0].moe.w2.requires_grad_(False)
    step(model, optimizer, 0)
    other, used = make(seed=4)
    step(other, used, 1)
    assert used.state[other.blocks[0].moe.w2]
    used.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert not used.state.get(other.blocks[0].moe.w2)


def test_a_state_is_loaded_by_its_bits():
    """E5: -0.0, the smallest numbers, and what a NaN carries."""
    odd = torch.tensor([-0x80000000, 1, -0x7FFFFFFF, 0x7FC12345], dtype=torch.int32).view(torch.float32)
    model, optimizer = make()
    step(model, optimizer, 0)
    for state in optimizer.state.values():
        for key, value in state.items():
            if key != "step":
                value.view(-1)[:4] = odd
    other, used = make(seed=4)
    used.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert kept(other, used)[1] == kept(model, optimizer)[1]
