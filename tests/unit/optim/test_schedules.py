from dataclasses import asdict

import pytest

from moe.optim.schedules import SCHEDULERS

ARGUMENTS = {
    "cosine_with_warmup": {"total": 1000, "warmup": 100, "alpha_f": 0.1},
    "wsd": {"total": 1000, "warmup": 100, "decay": 200, "alpha_f": 0.1},
    "linear_decay_with_warmup": {"total": 1000, "warmup": 100, "alpha_f": 0.1},
    "constant_with_warmup": {"total": 1000, "warmup": 100},
}
VALUES = {
    "cosine_with_warmup": {325: 0.1 + 0.9 * 0.5 * (1 + 0.5**0.5), 550: 0.55, 775: 0.1 + 0.9 * 0.5 * (1 - 0.5**0.5)},
    "wsd": {500: 1.0, 800: 1.0, 900: 0.55, 950: 0.325},
    "linear_decay_with_warmup": {325: 0.775, 550: 0.55},
    "constant_with_warmup": {500: 1.0, 1000: 1.0},
}


def test_every_schedule_is_tested():
    assert SCHEDULERS.keys() == ARGUMENTS.keys() == VALUES.keys()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_warmup_is_linear_and_starts_above_zero(name):
    factor = SCHEDULERS[name]
    assert [factor(done, **ARGUMENTS[name]) for done in (1, 50, 99, 100)] == [0.01, 0.5, 0.99, 1.0]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_values_on_the_way(name):
    for done, expected in VALUES[name].items():
        assert SCHEDULERS[name](done, **ARGUMENTS[name]) == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"constant_with_warmup"}))
@pytest.mark.parametrize("alpha_f", [0.0, 0.1, 0.37, 1.0])
def test_the_last_step_lands_exactly_on_alpha_f_and_stays(name, alpha_f):
    arguments = {**ARGUMENTS[name], "alpha_f": alpha_f}
    assert SCHEDULERS[name](1000, **arguments) == alpha_f
    assert SCHEDULERS[name](1300, **arguments) == alpha_f


@pytest.mark.parametrize("name", ARGUMENTS)
def test_without_warmup_the_first_step_is_near_the_peak(name):
    arguments = {**ARGUMENTS[name], "warmup": 0}
    assert 0.99 < SCHEDULERS[name](1, **arguments) <= 1.0


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"constant_with_warmup"}))
def test_a_run_of_warmup_only_does_not_divide_by_zero(name):
    arguments = {**ARGUMENTS[name], "warmup": 1000}
    assert SCHEDULERS[name](999, **arguments) == 0.999
    assert 0 <= SCHEDULERS[name](1000, **arguments) <= 1


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"constant_with_warmup"}))
def test_rate_never_rises_after_warmup(name):
    values = [SCHEDULERS[name](done, **ARGUMENTS[name]) for done in range(100, 1001)]
    assert values == sorted(values, reverse=True)


def test_warmup_and_decay_may_be_in_steps_where_the_run_is_in_tokens_and_the_other_way_round(tmp_path):
    from moe.config import load_config
    from moe.optim.rates import schedule
    from tests.tiny import tiny_config, write_config

    path = write_config(tmp_path / "c.yaml", tiny_config(tmp_path, max_duration="10240tok"))  # steps of 256 tokens
    wsd = "scheduler={name: wsd, t_warmup: %s, t_decay: %s}"
    tokens = schedule(asdict(load_config(path, [wsd % ("1024tok", "2560tok")])))
    assert schedule(asdict(load_config(path, [wsd % ("4ba", "10ba")]))).keywords == tokens.keywords
    steps = schedule(asdict(load_config(path, ["max_duration=40ba", wsd % ("1000tok", "2560tok")])))
    assert (steps.keywords["warmup"], steps.keywords["decay"]) == (4, 10)
    assert all(steps(step) == tokens(256 * step) for step in range(41))
