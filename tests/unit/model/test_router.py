import pytest
import torch

from moe.model.router import Router


@pytest.fixture
def router():
    torch.manual_seed(0)
    router = Router(d_model=16, n_experts=6, top_k=2)
    torch.nn.init.normal_(router.weight)
    return router


@pytest.fixture
def x():
    return torch.randn(11, 16, generator=torch.Generator().manual_seed(0))


def test_chosen_weights_are_the_largest_probabilities_renormalised(router, x):
    routing = router(x)
    prob = torch.softmax(x @ router.weight.t(), -1)
    for t in range(11):
        largest = prob[t].argsort(descending=True)[:2]
        assert routing.expert_TK[t].tolist() == largest.tolist()
        torch.testing.assert_close(routing.weight_TK[t], prob[t, largest] / prob[t, largest].sum())


def test_counts_probabilities_and_z_sum_over_tokens(router, x):
    routing = router(x)
    assert routing.stats.counts_E.tolist() == [(routing.expert_TK == e).sum().item() for e in range(6)]
    assert routing.stats.counts_E.sum() == 11 * 2
    logits = x @ router.weight.t()
    torch.testing.assert_close(routing.stats.score_E, logits.softmax(-1).sum(0))
    torch.testing.assert_close(routing.stats.z, logits.exp().sum(-1).log().square().sum())


def test_autocast_does_not_change_the_choice(router, x):
    plain = router(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = router(x)
    assert cast.weight_TK.dtype == torch.float32
    assert torch.equal(cast.expert_TK, plain.expert_TK) and torch.equal(cast.weight_TK, plain.weight_TK)


def test_balance_and_z_terms_reach_the_router_and_lower_what_they_name(router, x):
    share = router(x).stats.counts_E / 22
    before = (share * router(x).stats.score_E).sum()
    (grad,) = torch.autograd.grad(before, router.weight)
    with torch.no_grad():
        router.weight -= 0.01 * grad
    assert grad.abs().max() > 0
    assert (share * router(x).stats.score_E).sum() < before
    (grad,) = torch.autograd.grad(router(x).stats.z, router.weight)
    assert grad.abs().max() > 0


def test_entropy_and_the_largest_logit_are_those_of_the_probabilities_and_carry_no_gradient(router, x):
    routing = router(x)
    logits = x @ router.weight.t()
    plain = torch.distributions.Categorical(logits=logits).entropy().sum()
    torch.testing.assert_close(routing.stats.entropy, plain.detach())
    assert routing.stats.logit_max == logits.max()
    assert not routing.stats.entropy.requires_grad and not routing.stats.logit_max.requires_grad


@pytest.mark.parametrize("top_k", [1, 2, 5, 6])
@pytest.mark.parametrize("case", ["all tied", "pairs tied", "one towers", "largest numbers", "smallest numbers"])
def test_a_token_gets_k_distinct_experts_whatever_ties(case, top_k):
    """E9: also where all but one probability is 0, and the others are tied there."""
    router = Router(d_model=4, n_experts=6, top_k=top_k)
    rows = {
        "all tied": [0.0] * 6,
        "pairs tied": [2.0, 2.0, 1.0, 1.0, 0.0, 0.0],
        "one towers": [0.0, 0.0, 300.0, 0.0, 0.0, 0.0],
        "largest numbers": [3e38, -3e38, 3e38, -3e38, 0.0, 3e38],
        "smallest numbers": [1e-45, -1e-45, 0.0, -0.0, 1e-45, 0.0],
    }
    with torch.no_grad():
        router.weight.zero_()
        router.weight[:, 0] = torch.tensor(rows[case])
    x = torch.zeros(7, 4)
    x[:, 0] = 1
    routing = router(x)
    assert all(len(set(chosen)) == top_k for chosen in routing.expert_TK.tolist())
    assert routing.stats.counts_E.max() <= 7 and routing.stats.counts_E.sum() == 7 * top_k
    assert (routing.weight_TK >= 0).all()
    torch.testing.assert_close(routing.weight_TK.sum(-1), torch.ones(7))
    if case != "all tied":
        best = max(rows[case])
        assert rows[case][routing.expert_TK[0, 0]] == best or case == "smallest numbers"
    assert torch.isfinite(routing.weight_TK).all() and torch.isfinite(routing.stats.score_E).all()


def settings_of(kind):
    return {"softmax": {}, "sigmoid": {"scoring_func": "sigmoid"}, "biased": {"bias": True}}[kind]


@pytest.mark.parametrize("kind", ["sigmoid", "biased"])
def test_scores_that_are_all_zero_give_weights_and_statistics_that_are_numbers(kind):
    router = Router(d_model=2, n_experts=4, top_k=2, **settings_of(kind))
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[-300.0, 0], [-400, 0], [-500, 0], [300 if kind == "biased" else -300, 0]]))
        if kind == "biased":
            router.bias_E.copy_(torch.tensor([1.0, 1.5, 0.5, -2.5]))  # never the one whose probability is 1
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    routing = router(x)
    (routing.weight_TK.sum() + routing.stats.score_E.sum() + routing.stats.z).backward()
    assert all(torch.isfinite(value).all() for value in (*routing.stats, routing.weight_TK, x.grad))


def test_sigmoid_statistics_are_of_the_shares_of_the_scores(x):
    torch.manual_seed(0)
    router = Router(d_model=16, n_experts=6, top_k=2, scoring_func="sigmoid")
    torch.nn.init.normal_(router.weight)
    stats = router(x).stats
    logits = x @ router.weight.t()
    share = logits.sigmoid() / logits.sigmoid().sum(-1, keepdim=True)
    torch.testing.assert_close(stats.score_E, share.sum(0))
    torch.testing.assert_close(stats.entropy, torch.distributions.Categorical(share).entropy().sum().detach())
    torch.testing.assert_close(stats.z, logits.logsumexp(-1).square().sum())
    assert not stats.entropy.requires_grad and stats.score_E.requires_grad


def test_a_bias_decides_the_choice_and_neither_weights_nor_gradients_know_it(x):
    torch.manual_seed(0)
    router = Router(d_model=16, n_experts=6, top_k=2, bias=True)
    torch.nn.init.normal_(router.weight)
    before = router(x).expert_TK
    router.bias_E[4] = 10.0
    routing = router(x)
    assert (routing.expert_TK == 4).any(-1).all() and not torch.equal(before, routing.expert_TK)
    prob = (x @ router.weight.t()).softmax(-1).gather(1, routing.expert_TK)
    torch.testing.assert_close(routing.weight_TK, prob / prob.sum(-1, keepdim=True))
    assert not router.bias_E.requires_grad


def test_the_histogram_holds_each_token_once_for_each_expert_and_none_in_evaluation(x):
    torch.manual_seed(0)
    router = Router(d_model=16, n_experts=6, top_k=2, bias=True, bins=50)
    torch.nn.init.normal_(router.weight)
    router.bias_E.uniform_(-0.3, 0.3)
    stats = router(x).stats
    assert stats.needed_EB.shape == (6, 50) and (stats.needed_EB.sum(-1) == 11).all()
    low, high = router.bias_E.min() - 1, router.bias_E.max() + 1
    edge = ((router.bias_E - low) / (high - low) * 50).long()  # what needs no more than this is chosen as it is
    below = torch.stack([row[:end].sum() for row, end in zip(stats.needed_EB, edge, strict=True)])
    upto = torch.stack([row[: end + 1].sum() for row, end in zip(stats.needed_EB, edge, strict=True)])
    assert (below <= stats.counts_E).all() and (stats.counts_E <= upto).all()
    assert router.eval()(x).stats.needed_EB.shape == (6, 0)


@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid"])
def test_one_expert_has_no_z_term_and_its_router_no_gradient(x, scoring_func):
    """A dense model: there is no choice whose logits could be kept small."""
    router = Router(d_model=16, n_experts=1, top_k=1, scoring_func=scoring_func)
    torch.nn.init.normal_(router.weight)
    x = x.clone().requires_grad_()
    routing = router(x)
    assert routing.stats.z == 0
    (routing.weight_TK.sum() + routing.stats.score_E.sum() + routing.stats.z).backward()
    assert x.grad.abs().max() < 1e-6 and router.weight.grad.abs().max() < 1e-6
