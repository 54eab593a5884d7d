"""Experts that a step has no gradient for: Muon leaves them as they are, bit for bit."""

import math
import types

import pytest
import torch
from torch import nn

from moe.model import Transformer, router
from moe.optim.groups import build_groups
from moe.optim.muon import Muon
from tests.tiny import SHAPE

IDLE = 2


def bits(tensor):
    tensor = tensor.detach()
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def experts(idle, dtype=torch.float32, momentum_dtype="fp32"):
    """After a step that reached all experts: a batch of 4 with some -0.0, its optimizer, and the next gradient."""
    generator = torch.Generator().manual_seed(3)
    p = nn.Parameter(torch.randn(4, 16, 12, generator=generator).to(dtype))
    optimizer = Muon([{"params": [p], "kind": "muon", "lr": 0.02, "split": 2, "momentum_dtype": momentum_dtype}])
    p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    optimizer.step()
    with torch.no_grad():
        p[:, 0] = -0.0
        optimizer.state[p]["momentum"][:, 1] = -0.0
    p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    p.grad[idle] = 0
    return p, optimizer


@pytest.mark.parametrize("momentum_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_expert_without_gradient_keeps_the_bits_of_its_weights_and_momentum(dtype, momentum_dtype):
    """A18: and the others take the very step they would have taken anyway."""
    p, optimizer = experts([IDLE], dtype, momentum_dtype)
    other, peer = experts([], dtype, momentum_dtype)
    weight, momentum = p.detach().clone(), optimizer.state[p]["momentum"].clone()
    optimizer.update_norms = {}
    optimizer.step()
    peer.step()
    assert torch.equal(bits(p[IDLE]), bits(weight[IDLE]))
    assert torch.equal(bits(optimizer.state[p]["momentum"][IDLE]), bits(momentum[IDLE]))
    used = [e for e in range(4) if e != IDLE]
    assert all(not torch.equal(p[e], weight[e]) for e in used)
    torch.testing.assert_close(p[used], other[used], atol=1e-6, rtol=1e-6)
    assert torch.equal(optimizer.state[p]["momentum"][used], peer.state[other]["momentum"][used])
    moved = p.detach()[used].double() - weight[used].double() * (1 - 0.02 * 0.1)
    torch.testing.assert_close(math.prod(optimizer.update_norms[p]).double(), moved.norm(), atol=0.02, rtol=0.02)


def test_an_expert_that_was_never_reached_is_not_even_decayed_and_starts_as_if_it_were_the_first_step():
    """A18: many steps before its first token leave no trace."""
    late, optimizer = experts([IDLE])
    start = late.detach().clone()
    optimizer.state[late]["momentum"].zero_()
    for _ in range(20):
        optimizer.step()
    assert torch.equal(bits(late[IDLE]), bits(start[IDLE]))
    fresh = nn.Parameter(start.clone())
    first = Muon([{"params": [fresh], "kind": "muon", "lr": 0.02, "split": 2}])
    generator = torch.Generator().manual_seed(9)
    late.grad = torch.randn(late.shape, generator=generator)
    fresh.grad = late.grad.clone()
    optimizer.step()
    first.step()
    torch.testing.assert_close(late[IDLE], fresh[IDLE], atol=1e-6, rtol=1e-6)


@pytest.fixture
def starved(monkeypatch):
    """starved(): from now on no token chooses expert IDLE."""

    def starve():
        def linear(x, weight):
            return torch.nn.functional.linear(x, weight).index_fill(-1, torch.tensor([IDLE]), -1e4)

        monkeypatch.setattr(router, "F", types.SimpleNamespace(linear=linear))

    return starve


def test_an_expert_without_tokens_for_400_steps_keeps_its_weight_norm(starved):
    """A18: in training, after steps in which it was used. The others' weights move on."""
    torch.manual_seed(0)
    model = Transformer(vocab_size=29, eos_id=0, **{**SHAPE, "n_layers": 1, "d_model": 16, "expert_hidden": 8})
    optimizer = Muon(build_groups(model, name="muon", lr=0.01, weight_decay=0.1))
    moe = model.blocks[0].moe

    def norms():
        return torch.stack([w.detach().flatten(1).norm(dim=1) for w in (moe.w13, moe.w2)])

    def train(steps):
        for _ in range(steps):
            tokens = torch.randint(1, 29, (2, 12))
            parts = model(tokens, tokens)
            score_E, counts_E = parts.routers.score_E, parts.routers.counts_E
            balance = (score_E * counts_E / counts_E.sum()).sum() / tokens.numel()
            optimizer.zero_grad()
            (parts.loss / parts.targets + 0.01 * balance).backward()
            optimizer.step()
        return parts.routers.counts_E[0, IDLE]

    assert train(20) > 0, "it is used at first"
    before = norms()
    starved()
    assert train(400) == 0
    after = norms()
    assert torch.equal(after[:, IDLE], before[:, IDLE])
    assert ((after - before).abs() > 0.1).sum() == before.numel() - 2, "every other expert's norm has changed"


def test_tokens_that_the_loss_does_not_ask_about_are_no_reason_to_move():
    """A18's sibling: an expert of the last layer that got only tokens which are no targets, as those of EOS are."""
    torch.manual_seed(0)
    model = Transformer(vocab_size=29, eos_id=0, **{**SHAPE, "n_layers": 1})
    optimizer = Muon(build_groups(model, name="muon", lr=0.01, weight_decay=0.1))
    moe, tokens, chosen = model.blocks[0].moe, torch.randint(1, 29, (2, 12)), []
    moe.router.register_forward_hook(lambda module, args, routing: chosen.append(routing.expert_TK))
    model(tokens, tokens).loss.backward()
    optimizer.step()
    before = moe.w2.detach().clone()
    model(tokens)  # where each token goes after that step
    labels = tokens.clone()
    labels[:, 1:][(chosen[-1] == IDLE).any(-1).view(2, 12)[:, :-1]] = -100
    optimizer.zero_grad()
    parts = model(tokens, labels)
    parts.loss.backward()
    assert parts.routers.counts_E[0, IDLE] > 0 and parts.targets > 0
    optimizer.step()
    assert torch.equal(bits(moe.w2[IDLE]), bits(before[IDLE]))
    assert not torch.equal(moe.w2, before)
