"""All expert backends against a plain float64 reference, forward and every gradient."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from moe.model import experts
from moe.model.experts import BACKENDS, choose_backend, moe_experts
from moe.model.kernels.dispatch import from_experts, sort_by_expert, to_experts
from moe.model.kernels.expert_loop import experts_loop

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


def chosen(name):
    return CHOICES[name].to(torch.get_default_device())


def inputs(expert, dtype):
    torch.manual_seed(0)
    n_tokens, top_k = expert.shape
    x = torch.randn(n_tokens, D, dtype=torch.float64)
    weight = torch.rand(n_tokens, top_k, dtype=torch.float64)
    w13 = torch.randn(E, 2 * FH, D, dtype=torch.float64) / 4
    w2 = torch.randn(E, D, FH, dtype=torch.float64) / 4
    grad = torch.randn(n_tokens, D, dtype=torch.float64)
    leaves = [t.to(dtype).requires_grad_() for t in (x, weight, w13, w2)]
    return leaves, grad.to(dtype), torch.bincount(expert.flatten(), minlength=E)


def need(backend):
    if backend == "grouped_mm" and not hasattr(F, "grouped_mm"):
        pytest.skip("torch.nn.functional.grouped_mm came with torch 2.10")
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: pip install triton")


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Every backend on the CPU, Triton in its interpreter; Triton on the GPU, where there is one."""
    need(request.param)
    monkeypatch.setattr(experts, "choose_backend", lambda *_: request.param)
    with torch.device(request.getfixturevalue("triton_device") if request.param == "triton" else "cpu"):
        yield request.param


@pytest.mark.parametrize("name", CHOICES)
def test_forward_and_every_gradient_equal_the_plain_reference(backend, name):
    expert = chosen(name)
    dtype = torch.float64 if backend == "loop" else torch.float32  # the kernels know no float64
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
    expert = chosen("empty experts")
    (x, weight, w13, w2), grad, counts = inputs(expert, torch.float32)
    moe_experts(x, weight, expert, w13, w2, counts).backward(grad)
    for w in (w13, w2):
        assert w.grad[[0, 2]].abs().max() == 0
        assert w.grad[[1, 3]].abs().amin(0).max() > 0


@pytest.mark.parametrize("name", ["grouped_mm", "triton"])
def test_backends_agree_in_bf16(name, request):
    need(name)
    with torch.device(request.getfixturevalue("triton_device") if name == "triton" else "cpu"):
        expert = chosen("spread")
        (x, weight, w13, w2), _, counts = inputs(expert, torch.bfloat16)
        order = sort_by_expert(expert)
        loop, found = (BACKENDS[which].layer(x, weight, order, w13, w2, counts) for which in ("loop", name))
        torch.testing.assert_close(found, loop, atol=0.05, rtol=0.05)


def test_autocast_casts_weights_and_keeps_fp32_gradients(backend):
    expert = chosen("spread")
    (x, weight, w13, w2), grad, counts = inputs(expert, torch.float32)
    with torch.autocast(x.device.type, torch.bfloat16):
        out = moe_experts(x, weight, expert, w13, w2, counts)
    assert out.dtype == torch.bfloat16
    out.backward(grad.bfloat16())
    exact = moe_experts(x, weight, expert, w13, w2, counts)
    torch.testing.assert_close(out.float(), exact, atol=0.1, rtol=0.1)
    for leaf in (x, weight, w13, w2):
        assert leaf.grad.dtype == torch.float32 and leaf.grad.abs().max() > 0


def test_loop_is_a_sound_torch_library_op():
    (x, weight, w13, w2), _, counts = inputs(chosen("empty experts"), torch.float64)
    order = sort_by_expert(chosen("empty experts"))
    found = torch.library.opcheck(experts_loop, (x, weight, *order, w13, w2, counts))
    assert set(found.values()) == {"SUCCESS"}


def test_the_loop_keeps_one_row_of_each_choice_and_not_its_input_too():
    """With 8 choices a token those rows are most of what a layer keeps."""
    expert = torch.randint(E, (40, 3), generator=torch.Generator().manual_seed(1))
    (x, weight, w13, w2), grad, counts = inputs(expert, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
        out = moe_experts(x, weight, expert, w13, w2, counts)
    assert kept.count((expert.numel(), D)) == 1 and (len(x), D) in kept
    out.backward(grad)
    assert x.grad.abs().min() > 0


GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "backend"),
    [
        ((9, 0), torch.bfloat16, 64, "grouped_mm"),
        ((10, 0), torch.bfloat16, 64, "grouped_mm"),
        ((10, 3), torch.bfloat16, 64, "grouped_mm"),
        ((9, 0), torch.bfloat16, 36, "triton"),  # rows of 72 bytes
        ((9, 0), torch.float32, 64, "triton"),
        ((8, 0), torch.bfloat16, 64, "triton"),
        ((8, 9), torch.bfloat16, 64, "triton"),
        ((12, 0), torch.bfloat16, 64, "triton"),
        ((9, 0), torch.float64, 64, "loop"),
        ((7, 5), torch.float32, 64, "loop"),
    ],
)
def test_the_gpu_decides_the_backend(monkeypatch, capability, dtype, width, backend):
    need(backend)
    monkeypatch.setattr(experts, "_capability", lambda device: capability)
    assert choose_backend(GPU, dtype, width, 32) == backend


def test_old_torch_takes_triton_and_no_triton_the_loop(monkeypatch):
    need("triton")
    monkeypatch.setattr(experts, "_capability", lambda device: (9, 0))
    monkeypatch.delattr(F, "grouped_mm", raising=False)
    assert choose_backend(GPU, torch.bfloat16, 64, 32) == "triton"
    monkeypatch.setattr(experts, "_has_triton", lambda: False)
    assert choose_backend(GPU, torch.bfloat16, 64, 32) == "loop"
    assert choose_backend(torch.device("cpu"), torch.bfloat16, 64, 32) == "loop"


def test_rows_return_to_their_tokens():
    expert = chosen("spread")
    x = torch.arange(7.0)[:, None].expand(7, 3).contiguous()
    order = sort_by_expert(expert)
    assert expert.flatten()[order.order_N].tolist() == sorted(expert.flatten().tolist())
    weight = torch.full(expert.shape, 0.5)
    assert torch.equal(from_experts(to_experts(x, order), weight, order), x)


def test_a_package_adds_kernels_of_its_own_to_the_table(monkeypatch):
    """Taken where it fits, and nowhere else."""
    monkeypatch.setattr(experts, "BACKENDS", dict(experts.BACKENDS))
    rows = []

    def products(x_ND, w13, w2, counts_E):
        rows.append(len(x_ND))
        parts = zip(x_ND.split(counts_E.tolist()), w13, w2, strict=True)
        halves = [((x @ w13_2FD.t()).chunk(2, -1), w2_DF) for x, w13_2FD, w2_DF in parts]
        return torch.cat([(F.silu(gate) * up) @ w2_DF.t() for (gate, up), w2_DF in halves])

    experts.add_backend("own", products, lambda device, dtype, width, hidden: width == D and dtype == torch.float64)
    expert = chosen("spread")
    for dtype, times in ((torch.float64, 1), (torch.float32, 1)):
        (x, weight, w13, w2), grad, counts = inputs(expert, dtype)
        moe_experts(x, weight, expert, w13, w2, counts).backward(grad)
        assert rows == [expert.numel()] * times and w13.grad.abs().max() > 0
    assert choose_backend(torch.device("cpu"), torch.float64, D, FH) == "own"
    assert choose_backend(torch.device("cpu"), torch.float64, 2 * D, FH) == "loop"
