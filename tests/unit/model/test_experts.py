"""Both expert backends against a plain float64 reference, forward and every gradient."""

import pytest
import torch
import torch.nn.functional as F

from moe.model import experts
from moe.model.dispatch import from_experts, sort_by_expert, to_experts
from moe.model.experts import experts_grouped_mm, experts_loop, moe_experts

D, E, FH = 16, 4, 24

# Which experts each token takes.
CHOICES = {
    "spread": torch.tensor([[0, 1], [2, 3], [1, 0], [3, 1], [0, 2], [2, 1], [3, 0]]),
    "empty experts": torch.tensor([[1, 3], [3, 1], [1, 3]]),
    "one takes all": torch.full((9, 1), 2),
    "single token": torch.tensor([[3, 0]]),
}


def reference(x, weight, expert, w13, w2):
    """Token by token, expert by expert."""
    rows = []
    for t in range(x.shape[0]):
        row = torch.zeros_like(x[t])
        for k in range(expert.shape[1]):
            gate, up = (w13[expert[t, k]] @ x[t]).chunk(2)
            row = row + weight[t, k] * (w2[expert[t, k]] @ (gate * torch.sigmoid(gate) * up))
        rows.append(row)
    return torch.stack(rows)


def inputs(expert, dtype):
    g = torch.Generator().manual_seed(0)
    n_tokens, top_k = expert.shape
    x = torch.randn(n_tokens, D, generator=g, dtype=torch.float64)
    weight = torch.rand(n_tokens, top_k, generator=g, dtype=torch.float64)
    w13 = torch.randn(E, 2 * FH, D, generator=g, dtype=torch.float64) / 4
    w2 = torch.randn(E, D, FH, generator=g, dtype=torch.float64) / 4
    grad = torch.randn(n_tokens, D, generator=g, dtype=torch.float64)
    leaves = [t.to(dtype).requires_grad_() for t in (x, weight, w13, w2)]
    return leaves, grad.to(dtype), torch.bincount(expert.flatten(), minlength=E)


@pytest.fixture(params=["loop", "grouped_mm"])
def backend(request, monkeypatch):
    if request.param == "grouped_mm":
        if not hasattr(F, "grouped_mm"):
            pytest.skip("torch.nn.functional.grouped_mm came with torch 2.10")
        monkeypatch.setattr(experts, "_has_grouped_mm", lambda device, dtype: True)
    return request.param


@pytest.mark.parametrize("name", CHOICES)
def test_forward_and_every_gradient_equal_the_plain_reference(backend, name):
    expert = CHOICES[name]
    dtype = torch.float64 if backend == "loop" else torch.float32  # grouped_mm knows no float64
    exact, grad, _ = inputs(expert, torch.float64)
    reference(exact[0], exact[1], expert, *exact[2:]).backward(grad)
    fast, grad, counts = inputs(expert, dtype)
    out = moe_experts(fast[0], fast[1], expert, *fast[2:], counts)
    out.backward(grad)
    tolerance = {"atol": 1e-12, "rtol": 1e-12} if dtype == torch.float64 else {"atol": 2e-5, "rtol": 1e-4}
    with torch.no_grad():
        expected = reference(exact[0], exact[1], expert, *exact[2:])
    torch.testing.assert_close(out.detach().double(), expected, **tolerance)
    for leaf, plain in zip(fast, exact, strict=True):
        torch.testing.assert_close(leaf.grad.double(), plain.grad, **tolerance)


def test_experts_without_tokens_get_zero_gradients(backend):
    expert = CHOICES["empty experts"]
    (x, weight, w13, w2), grad, counts = inputs(expert, torch.float32)
    moe_experts(x, weight, expert, w13, w2, counts).backward(grad)
    for w in (w13, w2):
        assert w.grad[[0, 2]].abs().max() == 0
        assert w.grad[[1, 3]].abs().amin(0).max() > 0


def test_backends_agree_in_bf16():
    if not hasattr(F, "grouped_mm"):
        pytest.skip("torch.nn.functional.grouped_mm came with torch 2.10")
    expert = CHOICES["spread"]
    (x, _, w13, w2), _, counts = inputs(expert, torch.bfloat16)
    x_ND = to_experts(x, sort_by_expert(expert))
    loop, _ = experts_loop(x_ND, w13, w2, counts)
    torch.testing.assert_close(experts_grouped_mm(x_ND, w13, w2, counts), loop, atol=0.05, rtol=0.05)


def test_autocast_casts_weights_and_keeps_fp32_gradients(backend):
    expert = CHOICES["spread"]
    (x, weight, w13, w2), grad, counts = inputs(expert, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = moe_experts(x, weight, expert, w13, w2, counts)
    assert out.dtype == torch.bfloat16
    out.backward(grad.bfloat16())
    exact = moe_experts(x, weight, expert, w13, w2, counts)
    torch.testing.assert_close(out.float(), exact, atol=0.1, rtol=0.1)
    for leaf in (x, weight, w13, w2):
        assert leaf.grad.dtype == torch.float32 and leaf.grad.abs().max() > 0


def test_loop_is_a_sound_torch_library_op():
    (x, _, w13, w2), _, counts = inputs(CHOICES["empty experts"], torch.float64)
    x_ND = to_experts(x, sort_by_expert(CHOICES["empty experts"])).detach().requires_grad_()
    torch.library.opcheck(experts_loop, (x_ND, w13, w2, counts))


def test_rows_return_to_their_tokens():
    expert = CHOICES["spread"]
    x = torch.arange(7.0)[:, None].expand(7, 3).contiguous()
    order = sort_by_expert(expert)
    assert expert.flatten()[order.order_N].tolist() == sorted(expert.flatten().tolist())
    weight = torch.full(expert.shape, 0.5)
    assert torch.equal(from_experts(to_experts(x, order), weight, order), x)
