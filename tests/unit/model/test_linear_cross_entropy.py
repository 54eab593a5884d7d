"""The chunked loss against plain float64 cross-entropy over full logits."""

import contextlib
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moe.model import loss as loss_module
from moe.model.loss import linear_cross_entropy

T, D, V = 37, 8, 50


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS_CPU", 10 * V)  # 10 tokens a chunk: 3 whole ones and a rest


class Made(TorchDispatchMode):
    """Shapes and dtypes of all tensors made inside, views and in-place results left out."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        self.tensors += [
            x for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in given
        ]
        return out

    def count(self):
        return Counter((tuple(x.shape), x.dtype) for x in self.tensors)

    def largest(self):
        return max(x.numel() for x in self.tensors)


def inputs(dtype=torch.float64, ignored=(0, 11, 12, 36)):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(T, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    w = torch.randn(V, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    target = torch.randint(0, V, (T,), generator=g)
    target[list(ignored)] = -100
    return x, w, target


def plain(x, w, target):
    logits = x @ w.t()
    nll = F.cross_entropy(logits, target, ignore_index=-100, reduction="sum")
    return nll, logits.logsumexp(-1)[target != -100].square().sum()


@pytest.mark.parametrize("z_weight", [0.0, 0.3])
@pytest.mark.parametrize("upstream", [1.0, -2.5, 1 / 33])
def test_sums_and_gradients_equal_plain_cross_entropy(z_weight, upstream):
    x, w, target = inputs()
    nll, z = plain(x, w, target)
    expected = torch.autograd.grad((nll + z_weight * z) * upstream, (x, w))
    head = linear_cross_entropy(x, w, target, z_weight=z_weight)
    torch.testing.assert_close(head.nll, nll.detach())
    torch.testing.assert_close(head.z, z.detach())
    torch.testing.assert_close(head.loss, (nll + z_weight * z).detach().requires_grad_())
    for ours, theirs in zip(torch.autograd.grad(head.loss * upstream, (x, w)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def test_fp32_stays_close_to_float64():
    x, w, target = inputs()
    nll, _ = plain(x, w, target)
    expected = torch.autograd.grad(nll, (x, w))
    x32, w32, _ = inputs(torch.float32)
    head = linear_cross_entropy(x32, w32, target)
    torch.testing.assert_close(head.nll.double(), nll.detach(), atol=0, rtol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(head.loss, (x32, w32)), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-4)


def test_large_logits_stay_finite():
    x, w, target = inputs(torch.float32)
    head = linear_cross_entropy(x * 1e3, w * 1e2, target, z_weight=1e-4)
    grads = torch.autograd.grad(head.loss, (x, w))
    assert all(torch.isfinite(t).all() for t in (*head, *grads))


def test_no_target_at_all_gives_zero_loss_and_zero_gradient():
    x, w, _ = inputs()
    head = linear_cross_entropy(x, w, torch.full((T,), -100), z_weight=1.0)
    assert [part.item() for part in head] == [0.0, 0.0, 0.0]
    assert all(grad.abs().max() == 0 for grad in torch.autograd.grad(head.loss, (x, w)))


def test_only_the_weighted_sum_carries_gradient():
    x, w, target = inputs()
    head = linear_cross_entropy(x, w, target, z_weight=0.1)
    assert (head.loss.requires_grad, head.nll.requires_grad, head.z.requires_grad) == (True, False, False)


def test_second_backward_is_refused_rather_than_scaled_twice():
    x, w, target = inputs()
    head = linear_cross_entropy(x, w, target)
    head.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        head.loss.backward()


def test_without_gradients_no_gradient_buffer_is_made(monkeypatch):
    x, w, target = inputs()

    def refuse(*args, **kwargs):
        raise AssertionError("a gradient buffer was allocated")

    monkeypatch.setattr(torch, "empty_like", refuse)
    with torch.no_grad():
        head = linear_cross_entropy(x, w, target)
    assert not head.loss.requires_grad
    with pytest.raises(AssertionError, match="gradient buffer"):
        linear_cross_entropy(x, w, target)


def test_autocast_keeps_an_fp32_head_gradient_close_to_fp32():
    x, w, target = inputs(torch.float32)
    expected = torch.autograd.grad(linear_cross_entropy(x, w, target).loss, (x, w))
    with torch.autocast("cpu", torch.bfloat16):
        head = linear_cross_entropy(x, w, target)
    assert head.loss.dtype == torch.float32
    for ours, theirs in zip(torch.autograd.grad(head.loss, (x, w)), expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_tensor_is_a_chunk_of_logits_and_one_fp32_buffer_holds_the_head_gradient(dtype):
    x, w, target = inputs(torch.float32)
    with Made() as made, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        linear_cross_entropy(x, w, target, z_weight=0.1).loss.backward()
    assert made.largest() == 10 * V, "a chunk has 10 of the 37 tokens"
    assert made.count()[(V, D), torch.float32] == 1
    assert w.grad.data_ptr() in [t.data_ptr() for t in made.tensors if t.shape == (V, D)], "not copied on its way out"


def test_without_gradients_nothing_of_the_size_of_the_head_is_made():
    x, w, target = inputs(torch.float32)
    with Made() as made, torch.no_grad():
        linear_cross_entropy(x, w, target)
    assert made.largest() == 10 * V
    assert not [t for t in made.tensors if t.shape in ((V, D), (T, D))]


def test_no_logits_of_all_tokens_exist_in_a_step_of_the_model(build):
    model = build()
    tokens = torch.randint(1, 97, (2, 40), generator=torch.Generator().manual_seed(0))
    with Made() as made:
        model(tokens, tokens).loss.backward()
        assert not [t for t in made.tensors if t.shape[-1:] == (97,) and t.numel() >= tokens.numel() * 97]
        model(tokens)
    assert [t for t in made.tensors if t.numel() == tokens.numel() * 97], "what this would look like"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("z_weight", [0.0, 0.3])
def test_a_fused_chunk_gives_the_eager_ones_numbers_from_one_graph(dtype, z_weight):
    """AOTAutograd here; Inductor's CPU code, once by hand: equal to 5e-7."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    loss_module._compiled_chunk.cache_clear()
    counters.clear()
    found = []
    for fused in (None, "aot_eager"):
        x, w, target = inputs(torch.float32)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            head = linear_cross_entropy(x, w, target, z_weight=z_weight, fused=fused)
        head.loss.backward()
        found.append((*(part.detach() for part in head), x.grad, w.grad))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-6, rtol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"], "one graph for the last chunk too"
    loss_module._compiled_chunk.cache_clear()


@pytest.mark.parametrize("fused", [None, "aot_eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_with_rows_of_zeros_gives_the_same_numbers(monkeypatch, dtype, fused):
    """As on a GPU, whose products want a vocabulary that is no odd number."""
    found = []
    for multiple in (1, 64):
        torch._dynamo.reset()
        loss_module._compiled_chunk.cache_clear()
        monkeypatch.setitem(loss_module.PADDED_TO, "cpu", multiple)
        x, w, target = inputs(torch.float32)
        watched = Made() if fused is None else contextlib.nullcontext()  # newer torch compiles nothing under a mode
        with watched as made, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            head = linear_cross_entropy(x, w, target, z_weight=0.3, fused=fused)
            scores = loss_module.token_scores(x.detach(), w.detach(), target.clamp(min=0))
        head.loss.backward()
        if made is not None:
            assert (multiple == 64) == bool([t for t in made.tensors if t.shape == (10, 64)]), "logits of a chunk"
        found.append((*(part.detach() for part in head), x.grad, w.grad, *scores))
    for plain_one, padded in zip(*found, strict=True):
        torch.testing.assert_close(padded, plain_one, atol=1e-6, rtol=1e-6)
    loss_module._compiled_chunk.cache_clear()
