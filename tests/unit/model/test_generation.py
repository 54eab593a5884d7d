import pytest
import torch

from moe.model.attention import KVCache
from moe.model.generation import generate

MODERN = {"scoring_func": "sigmoid", "balance": "sign", "n_shared_experts": 1, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 1, "head_dim": 16}, {"n_kv_heads": 4}, MODERN], ids=str)
def test_cached_logits_equal_one_pass_over_the_whole_text(build, tokens, changes):
    model = build(document_mask=False, **changes).eval()
    caches = [KVCache() for _ in model.blocks]
    with torch.no_grad():
        whole = model(tokens)
        parts = [model(tokens[:, :7], caches=caches)]
        parts += [model(tokens[:, i : i + 1], caches=caches) for i in range(7, tokens.shape[1])]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert [cache.length for cache in caches] == [tokens.shape[1]] * len(model.blocks)


def test_greedy_tokens_are_the_likeliest_of_one_pass_over_the_whole_text(build):
    model = build(document_mask=False).eval()
    new = list(generate(model, [5, 6], max_new_tokens=12, temperature=0))
    with torch.no_grad():
        likeliest = model(torch.tensor([[5, 6, *new]])).argmax(-1)[0]
    assert new and likeliest[1 : len(new) + 1].tolist() == new


def test_sampling_is_the_seeds_alone_and_leaves_the_random_state(build):
    model = build().eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    drawn = [list(generate(model, [5, 6], max_new_tokens=12, top_p=1.0, seed=seed)) for seed in (1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert drawn[0] == list(generate(model, [5, 6], max_new_tokens=12, top_p=1.0, seed=1)) != drawn[1]


def test_a_small_top_p_leaves_only_the_likeliest_token(build):
    model = build().eval()
    greedy = list(generate(model, [5, 6], max_new_tokens=12, temperature=0))
    assert list(generate(model, [5, 6], max_new_tokens=12, temperature=5.0, top_p=1e-6)) == greedy
    assert list(generate(model, [5, 6], max_new_tokens=12, temperature=5.0, top_p=1.0)) != greedy


def test_generation_ends_before_eos(build):
    model = build().eval()
    free = list(generate(model, [5, 6], max_new_tokens=12, temperature=0))
    model.eos_id = free[4]
    ended = list(generate(model, [5, 6], max_new_tokens=12, temperature=0))
    assert ended == free[: free.index(free[4])]


def test_a_prompt_costs_the_logits_of_one_place(build, monkeypatch):
    """Those of all its tokens were made, 20 GB for a long one of a large vocabulary, and one row was used."""
    model = build(document_mask=False).eval()
    rows = []
    plain = torch.nn.functional.linear

    def linear(x, weight, bias=None):
        if weight.shape[0] == model.embed.weight.shape[0]:
            rows.append(x.numel() // x.shape[-1])
        return plain(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    new = list(generate(model, [5, 6, 7, 8], max_new_tokens=3, temperature=0))
    assert new and set(rows) == {1}
