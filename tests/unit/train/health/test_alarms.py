"""Detectors fed with numbers: an error is told once, with cause and fix; a healthy run is not."""

import random
from typing import Any

import pytest

from moe.train.health.detectors import QUIET, Detectors, GradientNorm, LossNotFalling


def row(step: int, **changes: Any) -> dict[str, Any]:
    """Of a healthy run whose loss falls."""
    healthy = {
        "step": step,
        "total_steps": 10_000,
        "tokens_per_row": 1000,
        "train/loss": 6.0 - step / 1000,
        "optim/skipped_steps": 0,
        "experts/idle_steps/layer_00": 0,
        "throughput/data_wait": 0.01,
        "throughput/tokens_per_sec": 1000.0 + step % 7,
        "throughput/step_seconds": 0.5,
        "checkpoint_bytes": 10**9,
        "disk_free": 10**11,
        "time_limit": 3600.0,
        "seconds_left": 3600.0 - step / 2,
    }
    return {**healthy, **{name.replace("__", "/"): value for name, value in changes.items()}}


def feed(detectors: Detectors, errors: dict[int, dict[str, Any]], until: int, start: int = 0) -> list[tuple[int, str]]:
    """(step, name) of the alarms of rows `start` to `until`; `errors` by step."""
    told = []
    for step in range(start, until):
        detectors.gradient.add(1.0 + step % 5 / 10)
        told += [(step, alarm.name) for alarm in detectors.check(row(step, **errors.get(step, {})))]
    return told


def test_a_healthy_run_raises_no_alarm() -> None:
    assert feed(Detectors(), {}, until=500) == []


def test_a_noisy_loss_that_falls_by_a_power_law_raises_no_alarm() -> None:
    rng = random.Random(0)
    noisy = {n: {"train__loss": 2.6 + 6.0 * (n + 1) ** -0.3 + rng.gauss(0, 0.05)} for n in range(3000)}
    assert [name for _, name in feed(Detectors(), noisy, until=3000) if name != "time_limit"] == []


ERRORS: dict[str, dict[int, dict[str, Any]]] = {
    "loss_not_falling": {step: {"train__loss": 5.5} for step in range(20, 100)},
    "loss_rising": {step: {"train__loss": 6.6} for step in range(60, 64)},
    "non_finite": {70: {"optim__skipped_steps": 2}, **{step: {"optim__skipped_steps": 2} for step in range(71, 100)}},
    "dead_expert": {step: {"experts__idle_steps__layer_00": 150 + step} for step in range(50, 100)},
    "data_wait": {step: {"throughput__data_wait": 0.2} for step in range(60, 100)},
    "throughput": {step: {"throughput__tokens_per_sec": 700.0} for step in range(60, 100)},
    "disk_space": {step: {"disk_free": 1.9e9} for step in range(60, 100)},
    "time_limit": {step: {"seconds_left": 300.0} for step in range(60, 100)},
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_told_once_when_it_starts(name: str) -> None:
    told = feed(Detectors(), ERRORS[name], until=100)
    assert [found for _, found in told] == [name]
    assert 50 <= told[0][0] <= 90


def test_a_norm_ten_times_its_median_is_told_and_nine_times_is_not() -> None:
    detector = GradientNorm()
    for norm in [1.0, 1.1] * 30 + [9.0]:
        detector.add(norm)
    assert detector.seen({}) is None
    detector.add(12.0)
    assert "gradient norm of 12 is more than 10 times its median" in (detector.seen({}) or "")
    assert detector.seen({}) is None


def test_an_alarm_speaks_again_only_after_it_was_quiet() -> None:
    low = {"disk_free": 1.9e9}
    flicker = {step: low for step in range(20, 60, QUIET)}
    assert feed(Detectors(), flicker, until=100) == [(20, "disk_space")]
    again = {20: low, 21 + QUIET: low}
    assert feed(Detectors(), again, until=100) == [(20, "disk_space"), (21 + QUIET, "disk_space")]


def test_after_a_resume_medians_start_anew_and_losses_and_skipped_steps_go_on() -> None:
    before = Detectors()
    feed(before, {5: {"optim__skipped_steps": 3}}, until=6)
    assert before.state_dict()["skipped"] == 3
    detectors = Detectors()
    detectors.load_state_dict(before.state_dict())
    another = {"throughput__tokens_per_sec": 100.0, "optim__skipped_steps": 3}
    slower = {step: {**another, "throughput__data_wait": 0.9 * (step == 6)} for step in range(6, 100)}
    assert feed(detectors, slower, start=6, until=100) == []  # another machine; its loader starts in the first row
    flat = Detectors()
    flat.load_state_dict({"losses": [5.0] * 15, "lowest": 5.0, "skipped": 0})
    assert feed(flat, {s: {"train__loss": 5.0} for s in range(5)}, until=5) == [(4, "loss_not_falling")]


def test_every_alarm_says_what_it_sees_the_likely_cause_and_the_mend() -> None:
    detectors = Detectors(rate="optimizer.adamw.lr")
    for step in range(60):
        detectors.gradient.add(1.0)
        detectors.check(row(step))
    detectors.gradient.add(50.0)
    faulty = {name: value for error in ERRORS.values() for name, value in error[min(error)].items()}
    alarms = []
    for step in range(60, 90):
        alarms += detectors.check(row(step, **{**faulty, "experts__idle_steps__layer_03": 250}))
    assert {alarm.name for alarm in alarms} == {*ERRORS, "gradient_norm"}
    for alarm in alarms:
        assert "; likely cause: " in alarm.message and alarm.fix
        assert "RATE" not in alarm.fix and "optimizer.lr" not in alarm.fix
    assert sum("halve optimizer.adamw.lr" in alarm.fix for alarm in alarms) == 4
    (dead,) = [alarm.message for alarm in alarms if alarm.name == "dead_expert"]
    assert "for 250 steps, in layer 00, layer 03" in dead
    (clock,) = [alarm.message for alarm in alarms if alarm.name == "time_limit"]
    assert "over in 5m00s, at about step 660 of 10,000" in clock


def test_a_long_run_keeps_no_more_losses_than_a_short_one_and_resumes_between_two() -> None:
    """Falling by a power law to step 30,000, then level: the alarm comes where the fall is lost in the half before."""
    whole, resumed = Detectors(), Detectors()
    resumed.load_state_dict({"losses": [9.0] * 5_001, "lowest": 2.0, "skipped": 0})  # of a version that kept all rows
    resumed.check(row(1))
    assert len(resumed.falling.losses) < LossNotFalling.MOST and resumed.falling.each == 4
    spoken = []
    for step in range(1, 70_001):
        loss = 10.0 * min(step, 30_000) ** -0.3
        if whole.falling.seen({"train/loss": loss, "tokens_per_row": 1}) and not spoken:
            spoken.append(step)
        if step == 44_444:
            assert whole.falling.begun, "in the middle of one"
            resumed = Detectors()
            resumed.load_state_dict(whole.state_dict())
            assert resumed.state_dict() == whole.state_dict()
            whole = resumed
    assert len(whole.falling.losses) < LossNotFalling.MOST and 58_000 < spoken[0] < 66_000
