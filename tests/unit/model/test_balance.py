"""Statistics of the routers as one thing, and the rules that act on them."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from moe.model.balance import Balance, BalanceLoss, with_present_names
from moe.model.router import RouterStats
from tests.ranks import on_ranks


def stats(seed: int, layers: int = 2, experts: int = 4) -> RouterStats:
    random = torch.Generator().manual_seed(seed)
    return RouterStats(
        counts_E=torch.randint(0, 50, (layers, experts), generator=random),
        score_E=torch.rand(layers, experts, generator=random),
        z=torch.rand(layers, generator=random),
        entropy=torch.rand(layers, generator=random),
        logit_max=torch.randn(layers, generator=random),
    )


def test_statistics_add_up_but_for_the_largest_logit_and_stack_over_layers():
    a, b = stats(0), stats(1)
    both = a + b
    assert torch.equal(both.counts_E, a.counts_E + b.counts_E) and torch.equal(both.z, a.z + b.z)
    assert torch.equal(both.logit_max, torch.maximum(a.logit_max, b.logit_max))
    layers = [RouterStats(*(field[layer] for field in a)) for layer in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(RouterStats.stack(layers), a, strict=True))


def reduced(rank):
    total = stats(rank).all_reduce()
    expected = stats(0) + stats(1) + stats(2)
    assert all(value.dtype == torch.float64 for value in total)
    assert torch.equal(total.counts_E, expected.counts_E.double())
    assert torch.equal(total.logit_max, expected.logit_max.double())
    for name in ("score_E", "z", "entropy"):
        torch.testing.assert_close(getattr(total, name), getattr(expected, name).double(), rtol=1e-6, atol=0)
    assert total.score_E.shape == (2, 4)


def test_over_ranks_sums_are_summed_and_the_largest_logit_is_the_largest():
    on_ranks(3, reduced)


def test_the_parts_of_two_microbatches_are_those_of_the_batch_and_detached_they_carry_no_gradient(build, tokens):
    model = build()
    whole = model(tokens, tokens)
    parts = [model(part, part).detach() for part in (tokens[:1], tokens[1:])]
    assert not any(leaf.requires_grad for leaf in tree_leaves(parts)) and whole.routers.score_E.requires_grad
    torch.testing.assert_close(parts[0] + parts[1], whole.detach(), rtol=1e-5, atol=1e-4)


def test_the_balance_loss_is_one_a_layer_where_all_is_even_and_takes_the_previous_steps_shares():
    rule = BalanceLoss(n_layers=2, n_experts=4, weight=0.5)
    seen = stats(0)._replace(score_E=torch.full((2, 4), 2.5), counts_E=torch.tensor([[6, 2, 0, 0], [2, 2, 2, 2]]))
    assert float(rule.loss(seen, 10)) == pytest.approx(0.5 * 2)
    rule.end_step(seen, [])
    assert rule.share_LE.tolist() == [[0.75, 0.25, 0, 0], [0.25] * 4]
    uneven = seen._replace(score_E=torch.tensor([[10.0, 0, 0, 0], [2.5] * 4]))
    assert float(rule.loss(uneven, 10)) == pytest.approx(0.5 * (4 * 0.75 + 1))
    metric = rule.metrics(uneven, 10)["train/balance_loss"]
    assert metric.value_L.tolist() == pytest.approx([3.0, 1.0]) and metric.over_layers([3.0, 1.0]) == 2.0


def test_a_rule_that_says_nothing_does_nothing():
    rule = Balance()
    assert rule.loss(stats(0), 10) == 0.0 and rule.metrics(stats(0), 10) == {} and not rule.state_dict()
    rule.end_step(stats(0), [])


def test_a_state_of_version_0_1_has_the_names_of_now():
    old = {"transformer.norm.weight": torch.ones(2), "expert_share_LE": torch.zeros(1, 2)}
    assert list(with_present_names(old)) == ["transformer.norm.weight", "balance.share_LE"]
    assert with_present_names(with_present_names(old)).keys() == with_present_names(old).keys()
