"""moe/optim/rule.py: the rule's numbers, where they were computed by hand, and how it behaves between and beyond."""

import subprocess
import sys

import pytest

from moe.optim.rule import (
    embedding_rate,
    learning_rate,
    moonlight_rate,
    outside,
    warmup_steps,
    weight_decay,
)

YAMLS = [  # name, d, tokens, tokens a step, rate, warmup in steps, decay
    ("500m", 768, 10e9, 256 * 2048, 1.09e-3, 191, 0.24),
    ("1b", 1024, 20e9, 384 * 2048, 8.3e-4, 254, 0.236),
    ("1_5b", 1536, 30e9, 512 * 2048, 6.0e-4, 286, 0.25),
    ("medium", 512, 1e9, 64 * 2048, 1.64e-3, 100, 0.25),
    ("demo", 192, 600_000, 4096, 0.0078, 14.6, 0.1),
    ("quick", 256, 1_000_000, 4096, 0.0052, 24.4, 0.1),
]


@pytest.mark.parametrize(("name", "d_model", "tokens", "batch", "lr", "warmup", "decay"), YAMLS)
def test_the_rule_of_the_yamls(name, d_model, tokens, batch, lr, warmup, decay):
    rate = learning_rate(d_model=d_model, tokens=tokens, batch=batch)
    assert rate == pytest.approx(lr, rel=0.02)
    assert warmup_steps(tokens / batch) == pytest.approx(warmup, rel=0.01)
    assert weight_decay(rate, steps=tokens / batch) == pytest.approx(decay, rel=0.02)


def test_the_rate_goes_with_the_powers_that_are_written_down():
    base = {"d_model": 64, "tokens": 3e6, "batch": 2048}
    rate = learning_rate(**base)
    assert learning_rate(**{**base, "tokens": 24e6}) == pytest.approx(rate / 2)
    assert learning_rate(**{**base, "batch": 8192}) == pytest.approx(rate * 2)
    assert learning_rate(**{**base, "d_model": 4096}) == pytest.approx(rate / 32)
    assert learning_rate(**base, optimizer="adamw") == pytest.approx(rate * 0.65)


def test_the_rate_has_an_end():
    assert learning_rate(d_model=16, tokens=10_000, batch=8192) == 0.03


def test_the_decay_is_a_fifth_of_the_run_and_joins_the_short_runs_without_a_jump():
    assert weight_decay(0.005, steps=1999) == weight_decay(0.005, steps=2000) == 0.1
    assert weight_decay(0.005, steps=6144) == pytest.approx(1 / (0.2 * 0.005 * 6144))
    assert weight_decay(0.0012, steps=5000) == weight_decay(0.0001, steps=50_000) == 0.25
    assert weight_decay(0.01, steps=1e6) == 0.05
    ramp = [weight_decay(0.004, steps=steps) for steps in (2000, 2001, 3500, 4999, 5000)]
    assert ramp == sorted(ramp) and ramp[1] - ramp[0] < 1e-3 > ramp[4] - ramp[3]
    assert ramp[2] == pytest.approx((0.1 + 0.25) / 2)  # 1 / (0.2 x 0.004 x 3500) is beyond the most


def test_warmup_is_a_share_of_short_runs_then_so_many_steps_then_a_hundredth():
    assert [warmup_steps(steps) for steps in (200, 1000, 10_000, 40_000)] == [20, 100, 100, 400]
    assert [warmup_steps(steps, optimizer="adamw") for steps in (200, 1000, 40_000, 80_000)] == [80, 400, 400, 800]


def test_an_embedding_of_its_own_learns_faster_the_wider_it_is():
    assert embedding_rate(1e-3, d_model=1024, tied=True) == embedding_rate(1e-3, d_model=64, tied=False) == 1e-3
    assert embedding_rate(1e-3, d_model=472, tied=False) == pytest.approx(2e-3)


def test_moonlights_fit():
    assert moonlight_rate(1.14e19) == pytest.approx(1.02e-3, rel=5e-3)


def test_what_was_not_measured_is_named():
    assert outside(d_model=64, tokens=1e6, batch=2048) == outside(d_model=256, tokens=12.6e6, batch=512) == []
    assert outside(d_model=768, tokens=1e6, batch=524_288)[0] == "d_model 768 (64 to 256)"
    assert len(outside(d_model=768, tokens=1e10, batch=524_288)) == 3


def test_it_needs_no_torch():
    code = "import sys, moe.optim.rule; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
