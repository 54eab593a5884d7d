"""Statistics of the routers as one thing, and the rules that act on them."""

from typing import get_args

import pytest
import torch
from torch.utils._pytree import tree_leaves

from moe.config.balance import BALANCE_RULES, BalanceName
from moe.model.balance import RULES, Balance, BalanceLoss, with_present_names
from moe.model.router import Router, RouterStats
from tests.ranks import on_ranks
from tests.tiny import EVERY_OPTION


def stats(seed: int, layers: int = 2, experts: int = 4) -> RouterStats:
    random = torch.Generator().manual_seed(seed)
    return RouterStats(
        counts_E=torch.randint(0, 50, (layers, experts), generator=random),
        score_E=torch.rand(layers, experts, generator=random),
        z=torch.rand(layers, generator=random),
        entropy=torch.rand(layers, generator=random),
        logit_max=torch.randn(layers, generator=random),
        needed_EB=torch.randint(0, 9, (layers, experts, 5), generator=random),
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
    assert torch.equal(total.needed_EB, expected.needed_EB.double())
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


class Choice:
    """Routers that choose by given scores, and steps of a rule on them."""

    def __init__(self, name: str, scores_LTE: torch.Tensor, top_k: int, rate: float | None = None) -> None:
        self.rule = rule_of(name, rate)
        bins = BALANCE_RULES[name].bins
        n_layers, _, n_experts = scores_LTE.shape
        self.inputs = scores_LTE.logit()
        self.routers = []
        for _ in range(n_layers):
            router = Router(
                d_model=n_experts, n_experts=n_experts, top_k=top_k, scoring_func="sigmoid", bias=True, bins=bins
            )
            router.weight.data.copy_(torch.eye(n_experts))
            self.routers.append(router)

    def statistics(self, tokens: slice = slice(None)) -> RouterStats:
        pairs = zip(self.routers, self.inputs, strict=True)
        return RouterStats.stack([router(x_TD[tokens]).stats for router, x_TD in pairs]).detach()

    def step(self, *parts: slice) -> None:
        total = self.statistics(parts[0] if parts else slice(None))
        for part in parts[1:]:
            total = total + self.statistics(part)
        self.rule.end_step(total.all_reduce(), self.routers)

    @property
    def bias_LE(self) -> torch.Tensor:
        return torch.stack([router.bias_E for router in self.routers])

    @property
    def load_LE(self) -> torch.Tensor:
        counts_LE = self.statistics().counts_E.double()
        return counts_LE / counts_LE.mean(-1, keepdim=True)


def uneven(tokens: int = 600, experts: int = 8) -> torch.Tensor:
    """Scores of two layers; the first experts have the higher ones."""
    random = torch.Generator().manual_seed(0)
    low_E = torch.linspace(0.5, 0.0, experts)
    return (low_E + 0.4 * torch.rand(2, tokens, experts, generator=random)).clamp(0.01, 0.99)


def rule_of(name: str, rate: float | None = None):
    return RULES[name](n_layers=2, n_experts=8, weight=0.0, rate=rate)


def test_sign_moves_each_bias_by_its_rate_towards_the_fair_share_and_keeps_their_mean_at_zero():
    choice = Choice("sign", uneven(), 2, rate=0.01)
    load_LE = choice.load_LE
    choice.step()
    moved_LE = 0.01 * (1 - load_LE).sign()
    torch.testing.assert_close(choice.bias_LE.double(), moved_LE - moved_LE.mean(-1, keepdim=True), atol=1e-7, rtol=0)
    for _ in range(80):
        choice.step()
    assert load_LE.max() > 3 and choice.load_LE.max() < 1.5 and choice.load_LE.min() > 0.6
    assert choice.bias_LE.mean(-1).abs().max() < 1e-6 and choice.bias_LE.dtype == torch.float32


def test_quantile_brings_a_fixed_batch_to_its_fair_shares_in_a_few_steps():
    choice = Choice("quantile", uneven(), 2)
    assert choice.load_LE.max() > 3
    for _ in range(8):
        choice.step()
    assert choice.load_LE.max() < 1.1 and choice.load_LE.min() > 0.9
    assert choice.bias_LE.mean(-1).abs().max() < 1e-6


def test_quantile_is_that_of_the_tokens_themselves_within_a_bin():
    choice = Choice("quantile", uneven(), 2)
    for router in choice.routers:
        router.bias_E.copy_(torch.linspace(-0.2, 0.2, 8))
    biased_LTE = choice.inputs.sigmoid() + choice.bias_LE[:, None]
    needed_LTE = biased_LTE.topk(3, dim=-1).values[..., -1:] - choice.inputs.sigmoid()
    exact_LE = needed_LTE.sort(dim=1).values[:, 600 * 2 // 8 - 1]
    choice.step()
    bin_width = 2.4 / 1000
    expected_LE = exact_LE - exact_LE.mean(-1, keepdim=True)
    torch.testing.assert_close(choice.bias_LE, expected_LE, atol=bin_width, rtol=0)


def test_quantile_alone_gives_an_overloaded_expert_its_share_and_an_underloaded_one_less():
    """As its words say: the share of e where e's bias alone is the rule's, without its mean, and all others stay."""
    choice = Choice("quantile", uneven(), 2)
    before_LE = choice.load_LE
    needed_LTE = choice.inputs.sigmoid().topk(3, dim=-1).values[..., -1:] - choice.inputs.sigmoid()
    bias_LE = needed_LTE.sort(dim=1).values[:, 600 * 2 // 8 - 1] + 1e-6
    for expert in range(8):
        for router, bias_E in zip(choice.routers, bias_LE, strict=True):
            router.bias_E.zero_()
            router.bias_E[expert] = bias_E[expert]
        for before, after in zip(before_LE[:, expert].tolist(), choice.load_LE[:, expert].tolist(), strict=True):
            if before >= 1:
                assert after == pytest.approx(1, abs=0.02)
            else:
                assert before <= after < 0.98


@pytest.mark.parametrize("name", ["sign", "quantile"])
def test_microbatches_change_no_bit_of_a_bias(name):
    whole, parts = (Choice(name, uneven(), 3, rate=0.01) for _ in range(2))
    for _ in range(3):
        whole.step()
        parts.step(slice(0, 100), slice(100, 101), slice(101, 600))
    assert torch.equal(whole.bias_LE, parts.bias_LE) and whole.bias_LE.abs().max() > 0.01


def half_of_a_batch(rank):
    for name in ("sign", "quantile"):
        choice, alone = (Choice(name, uneven(), 3, rate=0.01) for _ in range(2))
        for _ in range(3):
            choice.step(slice(400 * rank, 400 + 200 * rank))
            total = alone.statistics()
            alone.rule.end_step(RouterStats(*(value.double() for value in total)), alone.routers)
        assert torch.equal(choice.bias_LE, alone.bias_LE), name


def test_ranks_change_no_bit_of_a_bias():
    on_ranks(2, half_of_a_batch)


def test_quantile_where_every_token_passes_all_experts_is_refused(build):
    with pytest.raises(ValueError, match=r"balance \(quantile\) needs model.top_k \(4\) below"):
        build(balance="quantile", top_k=4)


@pytest.mark.parametrize("balance", ["loss", "sign", "quantile"])
def test_recomputation_and_compiled_blocks_with_every_option_choose_and_count_the_same(build, tokens, balance):
    results = []
    for how in ("plain", "recomputed", "compiled"):
        model = build(balance=balance, activation_checkpointing=how == "recomputed", **EVERY_OPTION)
        for router in model.routers:
            if router.bias_E is not None:
                router.bias_E.copy_(torch.tensor([0.3, -0.1, -0.3, 0.1]))
        if how == "compiled":
            model.compile_blocks(backend="aot_eager")
        parts = model(tokens, tokens)
        (parts.loss / parts.targets + 0.01 * parts.routers.z.sum()).backward()
        results.append([*tree_leaves(parts.detach()), *(p.grad for p in model.parameters())])
        assert parts.routers.counts_E.shape == (2, 4), "of the layers that have experts"
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_each_rule_has_its_class_its_row_and_its_name():
    assert set(RULES) == set(BALANCE_RULES) == set(get_args(BalanceName))


def test_a_state_of_version_0_1_has_the_names_of_now():
    old = {"transformer.norm.weight": torch.ones(2), "expert_share_LE": torch.zeros(1, 2)}
    assert list(with_present_names(old)) == ["transformer.norm.weight", "balance.share_LE"]
    assert with_present_names(with_present_names(old)).keys() == with_present_names(old).keys()
