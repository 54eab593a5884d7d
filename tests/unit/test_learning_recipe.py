"""The runs of benchmarks/learning.py that ask for a better recipe: which they are, their cost, how they are judged."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import learning_recipe as recipe
from learning_matrix import Results
from learning_parts import init_by_fan_in
from learning_recipe_picture import draw_recipe
from learning_recipe_report import decide, decide_equal_size, recipe_part
from learning_run import SEQ_LEN, Data, Run, build, evaluate, train
from learning_stats import dunnett, pooled_error

from moe.model.flops import count_parameters, flops_per_token

DATA = Data(*(np.random.default_rng(0).integers(1, 40, (n, SEQ_LEN)).astype(np.uint16) for n in (24, 4)), 40, 0)
EVERYTHING = {
    "n_kv_heads": 2,
    "n_experts": 32,
    "top_k": 3,
    "n_shared_experts": 1,
    "init": "fan_in",
    "schedule": "linear",
}


def put(results: Results, run: Run, final: float) -> None:
    costs = {"parameters": 1, "flops": 1.0, "optimizer_flops": 0.2, "cpu_seconds": 1.0, "commit": "abc"}
    results.put(run, {**dataclasses.asdict(run), **costs, "final": final, "data": "d"})


def flops(run: Run) -> float:
    return flops_per_token(**run.shape(2048), seq_len=SEQ_LEN)


def test_every_arm_costs_the_flops_of_its_base_but_for_the_routers():
    for base, arms in [
        (recipe.screen(0)["base"], [run for run in recipe.screen(0).values() if run.d_model == 64]),
        (recipe.screen(0)[recipe.KV_HEADS[2]], [recipe.screen(0)[name] for name in recipe.KV_HEADS.values()]),
        (recipe.single_arms(10)["base"], [*recipe.single_arms(10).values(), *recipe.bundled(EVERYTHING, 10).values()]),
        (recipe.check(EVERYTHING, 20)["base"], [*recipe.check(EVERYTHING, 20).values()]),
        (recipe.single_arms(10)["base"], [*recipe.equal_size(10).values()]),
    ]:
        for run in arms:
            routers = 6 * run.n_layers * run.d_model * (run.n_experts - base.n_experts)
            assert flops(run) - routers == pytest.approx(flops(base), rel=0.003), run.name  # widths are rounded


def test_seeds_of_one_stage_are_not_those_of_another_and_names_tell_all_runs_apart():
    seeds = [seed for stage in recipe.SEEDS.values() for seed in stage]
    assert len(seeds) == len(set(seeds))
    makes = [recipe.screen, recipe.single_arms, recipe.equal_size]
    makes += [lambda seed, make=make: make(EVERYTHING, seed) for make in (recipe.bundled, recipe.check)]
    runs = [run for seed in seeds for make in makes for run in make(seed).values()]
    assert len({run.name for run in runs}) == len(runs)


def fill(results: Results, gains: dict[str, float]) -> None:
    """Makes up all runs that are known, stage after stage; an arm's final loss is 4 with its gain and a seed's own."""
    while True:
        stages = [(recipe.screen, recipe.SEEDS["A"])]
        if recipe.screened(results) is not None:
            stages += [(recipe.single_arms, recipe.SEEDS["B"]), (recipe.equal_size, recipe.SEEDS["B"])]
        if (found := recipe.bundle(results)) is not None:
            stages += [
                (lambda seed, found=found: recipe.bundled(found, seed), recipe.SEEDS["B"]),
                (lambda seed, found=found: recipe.check(found, seed), recipe.SEEDS["C"]),
            ]
        new = False
        for make, seeds in stages:
            for seed in seeds:
                for name, run in make(seed).items():
                    if results.get(run) is None:
                        put(
                            results, run, 4 + gains.get(name, 0.0) + 0.03 * (seed % 10) + 0.001 * (len(name) * seed % 3)
                        )
                        new = True
        if not new:
            return


def test_the_bundle_is_what_helped_and_waits_for_the_stage_that_says_so(tmp_path):
    results = Results(tmp_path)
    assert [runs is None for _, runs in recipe.recipe_matrix(results)] == [False, True, True, True, True]
    gains = {
        "init by fan-in": -0.02, "shared expert": -0.03, "sigmoid scores, quantile bias": 0.01,
        recipe.KV_HEADS[4]: -0.004, "32 experts, top 4": -0.01, "64 experts, top 8": -0.05,
        "linear decay to 0.05": 0.02, "base, half of the tokens": 0.2,
        "bundle": -0.1, "bundle, 0.75 of the tokens": -0.02,
    }  # fmt: skip
    fill(results, gains)
    assert recipe.bundle(results) == {"n_shared_experts": 1, "init": "fan_in", "n_experts": 64, "top_k": 7}
    assert all(runs is not None for _, runs in recipe.recipe_matrix(results))
    page = recipe_part(results)
    assert "goal met" in page and "not complete yet" not in page and "Open" not in page
    assert page.count("runs, made by commit abc.") == 4 and "not above base's: no contradiction" in page
    better = next(line for line in page.splitlines() if line.startswith("Better than base"))
    assert "64 experts, top 8" in better and "bundle" in better and "linear" not in better
    draw_recipe(results, tmp_path / "recipe.png")
    assert 10_000 < (tmp_path / "recipe.png").stat().st_size < 200_000


def test_the_token_ratio_is_of_the_tokens_that_an_arm_had(tmp_path):
    """Base on half of the tokens ends 0.2 nats above: an arm that ends 0.2 below needs half of base's, one that ends
    there on 0.75 of the tokens 0.375.
    """
    results = Results(tmp_path)
    gains = {"64 experts, top 8": -0.2, "base, half of the tokens": 0.2, "bundle": -0.2}
    fill(results, gains | {"bundle, 0.75 of the tokens": -0.2})
    found = decide(results)
    assert found.ratios("64 experts, top 8")[1] == pytest.approx(0.5, abs=0.01)
    least, mean, most = found.ratios("bundle, 0.75 of the tokens")
    assert least < mean < most and mean == pytest.approx(0.375, abs=0.01)


def test_experts_of_bases_size_are_judged_with_the_error_of_all_arms_and_alone(tmp_path):
    """By hand: the value for one arm, with the degrees of freedom of all, times the pooled error of a difference."""
    results = Results(tmp_path)
    fill(results, {"base, half of the tokens": 0.2, "16 experts, top 4": -0.05, "32 experts, top 4": -0.07})
    run, base = [arms[0] for arms in (list(make(10).values()) for make in (recipe.equal_size, recipe.single_arms))]
    sizes = [count_parameters(**arm.shape(2048)).total for arm in (run, base)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.003), "its routers' alone are more"
    found, whole = decide_equal_size(results), decide(results)
    assert [*found.arms] == ["base", "16 experts, top 4"] and found.slope == whole.slope
    losses = [[results.final(run) for run in runs] for runs in (*whole.arms.values(), found.arms["16 experts, top 4"])]
    error, freedom = pooled_error(losses)
    assert freedom == 3 * (len(losses) - 1)
    assert found.half == pytest.approx(dunnett(1, freedom) * error / 2**0.5) and found.half < whole.half * 1.2
    part = recipe_part(results).partition("Stage D:")[2]
    assert "entire interval: 16 experts, top 4." in part and "4 runs, made by" in part and "32 experts" not in part


def test_nothing_that_helped_leaves_the_recipe_as_it_is(tmp_path):
    results = Results(tmp_path)
    fill(
        results,
        {
            "base, half of the tokens": 0.2,
            **{name: 0.02 for name in {**recipe.PARTS, **recipe.EXPERTS, **recipe.DECAY}},
        },
    )
    assert recipe.bundle(results) == {}
    page = recipe_part(results)
    assert "Better than base, the entire interval: none" in page and "Nothing helped: there is no bundle." in page
    assert "There is no bundle to check." in page and "| bundle" not in page
    assert [len(runs) for _, runs in recipe.recipe_matrix(results)] == [21, 20, 0, 0, 4]


def test_a_bundle_of_one_arm_is_that_arm_and_is_counted_once(tmp_path):
    results = Results(tmp_path)
    rest = {name: 0.02 for name in {**recipe.PARTS, **recipe.EXPERTS, **recipe.DECAY}}
    fill(results, {**rest, "64 experts, top 8": -0.05, "base, half of the tokens": 0.2})
    assert recipe.bundle(results) == recipe.EXPERTS["64 experts, top 8"]
    assert [*decide(results).arms] == [
        "base", "32 experts, top 4", "64 experts, top 8", "linear decay to 0.05", "bundle, 0.75 of the tokens"
    ]  # fmt: skip
    assert "The bundle is '64 experts, top 8' alone, chosen and judged by the same runs." in recipe_part(results)


def test_an_arm_that_diverged_is_said_to_have_and_spoils_no_other(tmp_path):
    results = Results(tmp_path)
    fill(results, {"64 experts, top 8": -0.05, "base, half of the tokens": 0.2, "bundle": -0.08})
    half = decide(results).half
    run = recipe.single_arms(recipe.SEEDS["B"][0])["32 experts, top 4"]
    put(results, run, None)
    results.read.pop(run.name)
    found = decide(results)
    assert found.half == pytest.approx(half, rel=0.5) and found.gains["32 experts, top 4"] == float("inf")
    page = recipe_part(results)
    assert "| 4 | diverged | diverged |  |  |" in page
    assert "64 experts, top 8" in next(line for line in page.splitlines() if line.startswith("Better than base"))


def test_what_says_how_b_ends_is_open_until_all_arms_are_there(tmp_path):
    results = Results(tmp_path)
    for seed in recipe.SEEDS["B"]:
        for name, run in recipe.single_arms(seed).items():
            if name in ("base", "base, half of the tokens", "linear decay to 0.05"):
                put(results, run, 4.0 + 0.2 * ("half" in name) + 0.01 * (seed % 3))
    assert "Open, as arms are missing." in recipe_part(results)


def test_dunnetts_values_are_those_of_the_tables():
    """Dunnett, Biometrics 20 (1964), two-sided, 0.05, 12 degrees of freedom."""
    assert [round(dunnett(arms, 12), 2) for arms in (1, 2, 3, 4, 5)] == [2.18, 2.5, 2.68, 2.81, 2.9]


def test_the_pooled_error_knows_neither_arms_nor_seeds():
    error, freedom = pooled_error([[1.0, 2.0, 3.0], [11.0, 12.0, 13.0]])
    assert error == pytest.approx(0, abs=1e-12) and freedom == 2
    assert pooled_error([[1.0, 2.0], [1.0, 3.0]])[0] == pytest.approx(0.5)


def test_wider_initial_weights_are_the_same_draws_by_fan_in():
    run = Run(optimizer="muon", lr=0.01, n_layers=2)
    plain, wide = build(run, DATA), build(dataclasses.replace(run, init="fan_in"), DATA)
    std = {name: float(weight.detach().std()) for name, weight in wide.named_parameters() if weight.ndim > 1}
    assert std["blocks.0.attn.q_proj.weight"] == pytest.approx(0.5 / 8, rel=0.05)
    assert std["blocks.0.moe.w2"] == pytest.approx(0.5 / 128**0.5 / 2, rel=0.05), "over the root of twice the layers"
    for (name, one), (_, other) in zip(plain.named_parameters(), wide.named_parameters(), strict=True):
        if one.ndim == 1 or name.endswith("router.weight"):
            assert torch.equal(one, other), name
        else:
            assert torch.equal(one.sign(), other.sign()) and not torch.equal(one, other), name
    before = plain.embed.weight.clone()
    init_by_fan_in(plain)
    assert not torch.equal(before, plain.embed.weight)


@pytest.mark.parametrize("change", [{"balance": "quantile"}, {"schedule": "linear"}, EVERYTHING], ids=str)
def test_every_part_trains(change):
    run = Run(optimizer="muon", lr=0.01, share=3 / 384, n_layers=2, router="muon", expert_hidden=32, **change)
    first, again = train(run, DATA), train(run, DATA)
    assert first["final"] == again["final"] < evaluate(build(run, DATA), DATA)
    plain = train(Run(optimizer="muon", lr=0.01, share=3 / 384, n_layers=2, router="muon", expert_hidden=32), DATA)
    assert first["final"] != plain["final"]


def test_quantile_balance_moves_the_biases(monkeypatch):
    import learning_run

    made = []
    begin = learning_run.build
    monkeypatch.setattr(learning_run, "build", lambda *given: made.append(begin(*given)) or made[-1])
    train(Run(optimizer="muon", lr=0.01, share=2 / 384, n_layers=2, balance="quantile"), DATA)
    assert all(float(layer.router.bias_E.abs().max()) > 0 for layer in made[0].expert_layers)
