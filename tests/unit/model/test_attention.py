import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from moe.model import attention
from moe.model.attention import apply_rope, attend, each_head, rope_table
from moe.model.documents import document_causal_mask


@pytest.fixture
def qkv():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, heads, 20, 8, generator=g, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]


@pytest.fixture
def documents():
    return torch.tensor([[0] * 6 + [1] * 14, [0] * 19 + [1]])


@pytest.mark.parametrize("block", [1, 7, 20, 128])
def test_blocks_of_queries_equal_the_whole_and_every_gradient(monkeypatch, qkv, documents, block):
    monkeypatch.setattr(attention, "CPU_QUERY_BLOCK", block)
    mask = document_causal_mask(documents, torch.float64)
    q, k, v = qkv
    scores = q @ k.repeat_interleave(2, 1).mT / 8**0.5 + mask
    plain = (scores.softmax(-1) @ v.repeat_interleave(2, 1)).transpose(1, 2)
    out = attend(q, k, v, mask, grouped=True)
    torch.testing.assert_close(out, plain)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad(plain, qkv, grad)
    for ours, theirs in zip(torch.autograd.grad(out, qkv, grad), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_a_mask_attention_is_causal(qkv):
    one_document = document_causal_mask(torch.zeros(2, 20, dtype=torch.int64), torch.float64)
    torch.testing.assert_close(attend(*qkv, None, grouped=True), attend(*qkv, one_document, grouped=True))


def test_rope_makes_scores_depend_on_distance_only():
    cos, sin = rope_table(seq_len=30, head_dim=16, theta=100.0, device=torch.device("cpu"))
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    turned_q = apply_rope(q.expand(1, 30, 1, 16), cos, sin)[0, :, 0]
    turned_k = apply_rope(k.expand(1, 30, 1, 16), cos, sin)[0, :, 0]
    scores = turned_q @ turned_k.t()
    for distance in (0, 1, 13):
        same = scores.diagonal(-distance)
        torch.testing.assert_close(same, same[:1].expand_as(same), atol=1e-4, rtol=1e-4)
    assert (scores[1, 0] - scores[13, 0]).abs() > 1e-2
    torch.testing.assert_close(F.normalize(turned_q, dim=-1) * q.norm(), turned_q)


def test_on_a_gpu_masked_grouped_heads_reach_a_kernel_that_takes_them(monkeypatch):
    """Flash attention takes no mask, the memory-efficient kernel no groups: the plain one would keep every score."""
    try:
        with FakeTensorMode():
            torch.empty(2, device="cuda:0")[:1]
    except RuntimeError:
        pytest.skip("this torch cuts no fake tensor of a GPU where there is none (2.7)")
    given = []
    plain = F.scaled_dot_product_attention

    def watched(q, k, v, **settings):
        given.append((k.shape, v.shape, settings["enable_gqa"], settings.get("attn_mask")))
        return plain(q, k, v, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    with FakeTensorMode():
        q, k, mask = (torch.empty(shape, device="cuda:0") for shape in ((2, 6, 16, 8), (2, 2, 16, 8), (2, 1, 16, 16)))
        assert attend(q, k, k, mask, grouped=True).shape == (2, 16, 6, 8)
        attend(q, k, k, None, grouped=True)
    (masked, *_), (free, *_) = given[0], given[1]
    assert masked == q.shape and given[0][2] is False and given[0][3] is not None
    assert free == k.shape and given[1][2] is True, "flash attention takes groups, where there is no mask"


def test_keys_of_each_head_are_those_that_grouped_attention_takes():
    torch.manual_seed(3)
    q, k, v = torch.randn(2, 6, 24, 8), torch.randn(2, 3, 24, 8), torch.randn(2, 3, 24, 8)
    mask = torch.randn(2, 1, 24, 24)
    grouped = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    plain = F.scaled_dot_product_attention(q, each_head(k, q), each_head(v, q), attn_mask=mask)
    torch.testing.assert_close(plain, grouped)
