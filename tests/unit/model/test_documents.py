import pytest
import torch

from moe.model.documents import document_causal_mask, document_ids


def test_eos_belongs_to_the_document_it_ends():
    tokens = torch.tensor([[5, 0, 7, 8, 0, 0, 9], [0, 1, 2, 3, 4, 5, 0]])
    assert document_ids(tokens, 0).tolist() == [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]]


def test_mask_admits_only_the_own_document_and_the_past():
    mask = document_causal_mask(torch.tensor([[0, 0, 1]]), torch.float32)
    no = float("-inf")
    assert mask.tolist() == [[[[0, no, no], [0, 0, no], [no, no, 0]]]]


def test_packed_documents_equal_each_document_alone(build, tokens):
    model = build().eval()
    with torch.no_grad():
        packed = model(tokens)
        for first, last in ((0, 5), (6, 12), (13, 19)):
            alone = model(tokens[:1, first : last + 1])
            torch.testing.assert_close(packed[:1, first : last + 1], alone, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("document_mask", [True, False])
def test_other_documents_reach_the_logits_only_without_the_mask(build, tokens, document_mask):
    model = build(document_mask=document_mask).eval()
    changed = tokens.clone()
    changed[0, 2] = 50 if tokens[0, 2] != 50 else 51
    with torch.no_grad():
        change = (model(tokens) - model(changed))[0].abs().amax(-1)
    assert change[:2].max() == 0, "the past must not see the future"
    assert change[2:6].min() > 1e-3
    assert (change[6:].max() < 1e-6) == document_mask


def test_gradient_does_not_cross_documents(build, tokens):
    model = build(tie_embeddings=False)
    tokens[0] = torch.arange(1, 21)
    tokens[0, 9] = 0
    labels = torch.full_like(tokens, -100)
    labels[0, 15] = tokens[0, 15]
    model(tokens, labels).loss.backward()
    reached = model.embed.weight.grad.abs().sum(-1)
    assert reached[tokens[0, :10]].max() == 0
    assert reached[tokens[0, 10:15]].min() > 0
