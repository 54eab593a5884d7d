"""Documents as lengths for varlen attention: the lengths, what is made of them, and the GPU's path without a GPU."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from moe.model import Transformer, attention, experts, transformer
from moe.model.attention import attend, attend_packed, has_varlen
from moe.model.documents import Packed, document_causal_mask, document_ends, document_ids, pack

SAMPLES = {
    "no EOS": [5, 6, 7, 8, 9, 4],
    "EOS first": [0, 6, 7, 8, 9, 4],
    "EOS last": [5, 6, 7, 8, 9, 0],
    "EOS first and last": [0, 6, 7, 8, 9, 0],
    "several in a row": [5, 0, 0, 0, 9, 4],
    "several in a row at the end": [5, 6, 7, 0, 0, 0],
    "only EOS": [0, 0, 0, 0, 0, 0],
    "last but one": [5, 6, 7, 8, 0, 4],
}
EMULATED = pytest.mark.skipif(not attention.HAS_VARLEN, reason="varlen_attn came with torch 2.11")


def plain_ends(sample):
    """Ends of a sample's documents, token by token."""
    ends = [i + 1 for i, token in enumerate(sample) if token == 0]
    return ends if ends and ends[-1] == len(sample) else [*ends, len(sample)]


def emulated_varlen(q_THC, k_TGC, v_TGC, starts_q, starts_k, max_q, max_k, *, window_size, enable_gqa=None):
    """What varlen attention is defined to be: every stretch between two starts alone, causal."""
    if attention.VARLEN_TAKES_GROUPS:
        assert enable_gqa is (q_THC.shape[1] != k_TGC.shape[1])
    else:
        assert enable_gqa is None
    assert window_size == (-1, 0) and starts_q is starts_k and starts_q.dtype == torch.int32
    assert starts_q[0] == 0 and starts_q[-1] == len(q_THC) and (starts_q.diff() >= 0).all()
    assert starts_q.diff().max() <= max_q == max_k
    out = torch.zeros_like(q_THC)
    for start, end in itertools.pairwise(starts_q.tolist()):
        q, k, v = (x[start:end].transpose(0, 1)[None] for x in (q_THC, k_TGC, v_TGC))
        out[start:end] = attend(q, k, v, None, grouped=True)[0] if end > start else 0
    return out


@pytest.fixture
def varlen_on_cpu(monkeypatch):
    monkeypatch.setattr(attention, "varlen_attn", emulated_varlen)
    monkeypatch.setattr(transformer, "has_varlen", lambda *_: True)


@pytest.mark.parametrize("room", [6, 7, None])
@pytest.mark.parametrize("name", SAMPLES)
def test_ends_of_documents_are_found_and_padded(name, room):
    ends = document_ends(torch.tensor([SAMPLES[name]]), 0, room=room)
    expected = plain_ends(SAMPLES[name])
    room = 6 if room is None else room  # never more than there are tokens
    assert ends.dtype == torch.int32
    assert ends.tolist() == [expected + [6] * (room - len(expected))]


def test_starts_of_a_batch_count_on_over_its_samples():
    tokens = torch.tensor(list(SAMPLES.values()))
    starts, longest = pack(document_ends(tokens, 0, room=6), 6)
    expected = {6 * i + end for i, sample in enumerate(SAMPLES.values()) for end in plain_ends(sample)}
    assert sorted(set(starts.tolist())) == sorted({0, *expected})
    assert starts.tolist() == sorted(starts.tolist()) and len(starts) == 8 * 6 + 1 and longest == 6


@pytest.mark.parametrize(("documents", "room"), [(1, 8), (8, 8), (9, 16), (100, 128)])
def test_room_for_documents_grows_by_powers_of_two(documents, room):
    tokens = torch.ones(2, 512, dtype=torch.int64)
    tokens[1, 2 : 2 * documents : 2] = 0
    assert document_ends(tokens, 0).shape == (2, room)


@EMULATED
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_queries_are_named_where_the_kernel_takes_the_name(monkeypatch, tokens, told, kv_heads):
    """F1: a newer torch refuses fewer key-value heads than query heads where it is not told; an older one cannot be."""
    monkeypatch.setattr(attention, "VARLEN_TAKES_GROUPS", told)
    monkeypatch.setattr(attention, "varlen_attn", emulated_varlen)
    g = torch.Generator().manual_seed(2)
    qkv = [torch.randn(3, 20, heads, 8, generator=g, dtype=torch.float64) for heads in (4, kv_heads, kv_heads)]
    mask = document_causal_mask(document_ids(tokens, 0), torch.float64)
    packed = attend_packed(*qkv, pack(document_ends(tokens, 0), 20), grouped=kv_heads < 4)
    torch.testing.assert_close(packed, attend(*(x.transpose(1, 2) for x in qkv), mask, grouped=True))


def test_what_the_kernel_takes_is_read_from_its_signature():
    """F1: so that no list of versions has to be kept."""
    if attention.VARLEN_ARGUMENTS:
        import inspect

        taken = set(inspect.signature(torch.nn.attention.varlen.varlen_attn).parameters)
        assert ("enable_gqa" in taken) == attention.VARLEN_TAKES_GROUPS
    assert (torch.__version__ >= "2.11") == attention.HAS_VARLEN


@EMULATED
@pytest.mark.parametrize("room", [20, 33])
def test_varlen_equals_the_mask_and_every_gradient(monkeypatch, tokens, room):
    monkeypatch.setattr(attention, "varlen_attn", emulated_varlen)
    g = torch.Generator().manual_seed(0)
    qkv = [torch.randn(3, 20, heads, 8, generator=g, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    mask = document_causal_mask(document_ids(tokens, 0), torch.float64)
    masked = attend(*(x.transpose(1, 2) for x in qkv), mask, grouped=True)
    packed = attend_packed(*qkv, pack(document_ends(tokens, 0, room=room), 20), grouped=True)
    torch.testing.assert_close(packed, masked)
    grad = torch.randn(masked.shape, generator=g, dtype=torch.float64)
    for ours, right in zip(torch.autograd.grad(packed, qkv, grad), torch.autograd.grad(masked, qkv, grad), strict=True):
        torch.testing.assert_close(ours, right)


@EMULATED
@pytest.mark.parametrize("with_ends", [True, False])
def test_the_model_with_varlen_equals_the_model_with_a_mask(build, tokens, varlen_on_cpu, monkeypatch, with_ends):
    model = build()
    ends = document_ends(tokens, 0) if with_ends else None
    varlen = model(tokens, tokens, document_ends_BM=ends)
    varlen.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    monkeypatch.setattr(transformer, "has_varlen", lambda *_: False)
    masked = model(tokens, tokens)
    masked.loss.backward()
    torch.testing.assert_close(varlen.loss, masked.loss)
    for ours, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "there"),
    [
        ((9, 0), torch.bfloat16, 64, True),
        ((8, 0), torch.float16, 256, True),
        ((9, 0), torch.float32, 64, False),
        ((9, 0), torch.bfloat16, 36, False),
        ((9, 0), torch.bfloat16, 264, False),
        ((7, 5), torch.float16, 64, False),
    ],
)
@EMULATED
def test_varlen_is_used_where_flash_attention_runs(monkeypatch, capability, dtype, head_dim, there):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_varlen(torch.device("cuda", 0), dtype, head_dim) == there
    assert not has_varlen(torch.device("cpu"), dtype, head_dim)


@pytest.fixture
def bf16_autocast_on_cuda():
    """torch.autocast("cuda") turns itself off where there is no GPU."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", before)


@EMULATED
@pytest.mark.parametrize(("capability", "backend"), [((9, 0), "grouped_mm"), ((8, 0), "triton")])
def test_a_gpu_forward_chooses_its_kernels_and_never_waits(
    monkeypatch, bf16_autocast_on_cuda, shape, capability, backend
):
    """On tensors that claim to lie on a GPU and have no values: what needs one on the host raises."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(experts, "_capability", lambda device: capability)
    used = []
    for name, (products, fits) in list(experts.BACKENDS.items()):
        watched = experts.Backend(lambda *a, n=name, f=products: (used.append(n), f(*a))[1], fits)
        monkeypatch.setitem(experts.BACKENDS, name, watched)
    with FakeTensorMode(), torch.device("cuda", 0):
        model = Transformer(eos_id=0, **shape)
        tokens = torch.zeros(2, 16, dtype=torch.int64)
        parts = model(tokens, tokens)
        assert parts.loss.device.type == "cuda" and parts.loss.requires_grad
        with pytest.raises(DataDependentOutputException):
            parts.loss.item()
    assert used == [backend] * 2


@EMULATED
@pytest.mark.parametrize("activation_checkpointing", [False, True])
@pytest.mark.parametrize("backend", ["grouped_mm", "triton"])
def test_forward_and_backward_of_the_gpu_path_never_need_a_value(monkeypatch, build, backend, activation_checkpointing):
    """On the meta device, which has none; autograd would want a real GPU for tensors that claim to lie on one."""
    monkeypatch.setattr(transformer, "has_varlen", lambda *_: True)
    monkeypatch.setattr(experts, "choose_backend", lambda *_: backend)
    with torch.device("meta"):
        model = build(activation_checkpointing=activation_checkpointing).bfloat16()
        tokens = torch.zeros(2, 16, dtype=torch.int64)
        parts = model(tokens, tokens)
        (parts.loss / parts.targets + parts.routers.score_E.sum() + parts.routers.z.sum()).backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@EMULATED
def test_a_block_with_varlen_compiles_without_a_graph_break(build):
    with torch.device("meta"):
        block = build().blocks[0]
        x = torch.randn(2, 20, 32, requires_grad=True)
        rope = torch.zeros(20, 4), torch.zeros(20, 4)
        starts = torch.zeros(17, dtype=torch.int32)
        out, *_ = torch.compile(block, backend="aot_eager", fullgraph=True)(x, rope, Packed(starts, 20))
        out.sum().backward()
    assert out.shape == x.grad.shape == x.shape
