"""Detectors fed with numbers, then planted faults in whole runs: each is told once, with cause and mend."""

import json
import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moe.train.alarms import QUIET, Alarm, DeadExpert, Detectors, GradientNorm
from moe.train.stop import StopSignal
from tests.unit.train.runs import die_after, rows, train


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


def feed(detectors: Detectors, faults: dict[int, dict[str, Any]], until: int, start: int = 0) -> list[tuple[int, str]]:
    """(step, name) of the alarms of rows `start` to `until`; `faults` by step."""
    told = []
    for step in range(start, until):
        detectors.gradient.add(1.0 + step % 5 / 10)
        told += [(step, alarm.name) for alarm in detectors.check(row(step, **faults.get(step, {})))]
    return told


def test_a_healthy_run_raises_no_alarm() -> None:
    assert feed(Detectors(), {}, until=500) == []


def test_a_noisy_loss_that_falls_by_a_power_law_raises_no_alarm() -> None:
    rng = random.Random(0)
    noisy = {n: {"train__loss": 2.6 + 6.0 * (n + 1) ** -0.3 + rng.gauss(0, 0.05)} for n in range(3000)}
    assert [name for _, name in feed(Detectors(), noisy, until=3000) if name != "time_limit"] == []


FAULTS: dict[str, dict[int, dict[str, Any]]] = {
    "loss_not_falling": {step: {"train__loss": 5.5} for step in range(20, 100)},
    "loss_rising": {step: {"train__loss": 6.6} for step in range(60, 64)},
    "non_finite": {70: {"optim__skipped_steps": 2}, **{step: {"optim__skipped_steps": 2} for step in range(71, 100)}},
    "dead_expert": {step: {"experts__idle_steps__layer_00": 150 + step} for step in range(50, 100)},
    "data_wait": {step: {"throughput__data_wait": 0.2} for step in range(60, 100)},
    "throughput": {step: {"throughput__tokens_per_sec": 700.0} for step in range(60, 100)},
    "disk_space": {step: {"disk_free": 1.9e9} for step in range(60, 100)},
    "time_limit": {step: {"seconds_left": 300.0} for step in range(60, 100)},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_once_when_it_starts(name: str) -> None:
    told = feed(Detectors(), FAULTS[name], until=100)
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
    detectors = Detectors()
    for step in range(60):
        detectors.gradient.add(1.0)
        detectors.check(row(step))
    detectors.gradient.add(50.0)
    faulty = {name: value for fault in FAULTS.values() for name, value in fault[min(fault)].items()}
    alarms = []
    for step in range(60, 90):
        alarms += detectors.check(row(step, **{**faulty, "experts__idle_steps__layer_03": 250}))
    assert {alarm.name for alarm in alarms} == {*FAULTS, "gradient_norm"}
    for alarm in alarms:
        assert "; likely cause: " in alarm.message and alarm.mend
    (dead,) = [alarm.message for alarm in alarms if alarm.name == "dead_expert"]
    assert "for 250 steps, in layer 00, layer 03" in dead
    (clock,) = [alarm.message for alarm in alarms if alarm.name == "time_limit"]
    assert "over in 5m00s, at about step 660 of 10,000" in clock


# --- planted faults in whole runs -------------------------------------------------------------------------------------

SHORT = ["max_duration=30ba", "scheduler.t_warmup=1ba", "eval_data=null", "save_interval=100ba"]


def alarms(folder: Path) -> dict[str, dict]:
    """By name; none twice, but for those that the speed of the machine may raise."""
    path = folder / "alarms.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert all(set(alarm) == {"time", "step", "name", "message", "mend"} for alarm in found)
    names = [alarm["name"] for alarm in found if alarm["name"] not in ("throughput", "data_wait")]
    assert len(set(names)) == len(names)
    return {alarm["name"]: alarm for alarm in found}


def test_a_learning_rate_a_hundred_times_too_high_is_told(tiny: Path, tmp_path: Path, capsys) -> None:
    code, folder = train(tiny, tmp_path, *SHORT, "optimizer.lr=0.5")
    told = alarms(folder)["loss_rising"]
    assert code == 0 and told["step"] < 10 and "optimizer.lr" in told["mend"]
    assert f"alarm: {told['message']}\n       mend: halve optimizer.lr" in capsys.readouterr().out
    assert not alarms(train(tiny, tmp_path, *SHORT, name="healthy")[1]).keys() & {"loss_rising", "loss_not_falling"}


def test_a_loss_that_stands_still_is_told(tiny: Path, tmp_path: Path) -> None:
    code, folder = train(tiny, tmp_path, *SHORT, "optimizer.lr=1e-12")
    told = alarms(folder)["loss_not_falling"]
    assert code == 0 and "over the last 2.56k tokens" in told["message"]


def test_a_frozen_router_is_told_with_the_layer_after_a_kill_too(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    from moe.model.router import Router

    init, forward, last = Router.__init__, Router.forward, []

    def remember(self, **kwargs):
        init(self, **kwargs)
        last[:] = [self]

    def starved(self, x_TD):
        """In the last layer no token ever chooses expert 2."""
        if self is not last[0]:
            return forward(self, x_TD)
        with torch.no_grad():
            self.weight[:, 0] = torch.tensor([50.0, 50.0, -50.0, 50.0])
        return forward(self, torch.cat([torch.ones_like(x_TD[:, :1]), x_TD[:, 1:]], 1))

    monkeypatch.setattr(Router, "__init__", remember)
    monkeypatch.setattr(Router, "forward", starved)
    monkeypatch.setattr(DeadExpert, "STEPS", 20)
    settings = [*SHORT, "save_interval=5ba", "log_interval=3ba"]
    with monkeypatch.context() as patch:
        die_after(12, patch)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path, *settings)
    assert not alarms(tmp_path / "run")
    code, folder = train(tiny, tmp_path, *settings)
    told = alarms(folder)["dead_expert"]
    assert code == 0 and told["step"] == 21 and "in layer 01" in told["message"]  # the first row after 20 idle steps
    assert rows(folder, "experts/dead/layer_01")[30] == 1 and rows(folder, "experts/load/layer_01")[30][2] == 0


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The only time that passes for Throughput: `sample` seconds for each sample read, `step` for each microbatch."""
    from moe.data.read.dataset import TokenDataset
    from moe.train.callbacks import throughput
    from moe.train.model import MoEModel

    clock = SimpleNamespace(now=100.0, sample=0.0, step=lambda count: 0.1, steps=0)
    item, loss = TokenDataset.get_item, MoEModel.loss

    def read(self, *args, **kwargs):
        clock.now += clock.sample
        return item(self, *args, **kwargs)

    def compute(self, outputs, batch, *args, **kwargs):
        clock.steps += 1
        clock.now += clock.step(clock.steps)
        return loss(self, outputs, batch)

    monkeypatch.setattr(TokenDataset, "get_item", read)
    monkeypatch.setattr(MoEModel, "loss", compute)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_sleeping_loader_is_told(tiny: Path, tmp_path: Path, clock: SimpleNamespace) -> None:
    clock.sample = 0.01
    code, folder = train(tiny, tmp_path, *SHORT)
    told = alarms(folder)["data_wait"]
    assert code == 0 and told["step"] == 4 and "num_workers" in told["mend"]
    assert rows(folder, "throughput/data_wait")[20] == pytest.approx(0.08 / 0.18)


def test_slow_steps_are_told_and_a_slow_first_one_is_not(tiny: Path, tmp_path: Path, clock: SimpleNamespace) -> None:
    clock.step = lambda count: 5.0 if count == 1 else 0.1 if count < 24 else 0.15
    code, folder = train(tiny, tmp_path, *SHORT)
    told = alarms(folder)["throughput"]
    assert code == 0 and told["step"] == 27 and "33% below" in told["message"]


def test_a_nearly_full_disk_is_told(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    from moe.train.callbacks import alarms as callback

    free = [10**12]
    usage = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=free[0]))
    monkeypatch.setattr(callback, "shutil", usage)
    short = [*SHORT, "max_duration=3ba"]
    folder = train(tiny, tmp_path, *short, name="first")[1]
    size = (folder / "step-00000003" / "state.pt").stat().st_size
    assert "disk_space" not in alarms(folder)
    free[0] = int(1.5 * size)
    code, folder = train(tiny, tmp_path, *short, name="full")
    told = alarms(folder)["disk_space"]
    assert code == 0 and told["step"] == 1 and "save_num_checkpoints_to_keep" in told["mend"]


def test_gradients_that_are_not_finite_are_told_once(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    from moe.train.model import MoEModel

    plain, calls = MoEModel.loss, []

    def poisoned(self, outputs, batch, *args, **kwargs):
        calls.append(None)
        return {"total": plain(self, outputs, batch)["total"] * (float("nan") if len(calls) in (7, 9, 11) else 1.0)}

    monkeypatch.setattr(MoEModel, "loss", poisoned)
    code, folder = train(tiny, tmp_path, *SHORT)
    told = alarms(folder)["non_finite"]
    assert code == 0 and told["step"] == 7 and "1 step(s) were skipped" in told["message"]


def test_a_time_limit_that_comes_near_is_told_before_the_run_stops(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    plain = StopSignal.__init__

    def started_long_ago(self):
        plain(self)
        self.started -= 3599

    monkeypatch.setattr(StopSignal, "__init__", started_long_ago)
    code, folder = train(tiny, tmp_path, *SHORT, "time_limit=1h", "max_duration=1000000ba")
    told = alarms(folder)["time_limit"]
    assert code == 75 and "of 1,000,000; likely cause: time_limit is shorter" in told["message"]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "stop" and events[-1]["reason"] == "time_limit"


# --- where an alarm goes ----------------------------------------------------------------------------------------------


def wait_for(path: Path) -> str:
    for _ in range(200):
        if path.exists() and path.read_text().endswith("\n"):
            break
        time.sleep(0.05)
    return path.read_text()


def test_the_alert_command_gets_the_message_as_it_is(tmp_path: Path) -> None:
    from moe.train.alert import run_command

    script, out = tmp_path / "tell.sh", tmp_path / "out"
    script.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$#" "$1" "$2" "$MOE_MESSAGE" "$MOE_ALARM" "$MOE_STEP" "$MOE_RUN" > {out}\n'
    )
    script.chmod(0o755)
    nasty = f"loss $(touch {tmp_path}/never) `touch {tmp_path}/never` ; touch {tmp_path}/never"
    said: list[str] = []
    alarm = Alarm("throughput", nasty, "look 'here'")
    run_command(f"{script} 'two words'", alarm, run_name="r", step=1200, report=said.append)
    message = f"r, step 1,200: {nasty}. Mend: look 'here'"
    assert wait_for(out).splitlines() == ["2", "two words", message, message, "throughput", "1200", "r"]
    assert not (tmp_path / "never").exists() and not said


def test_an_alert_command_that_fails_or_hangs_only_makes_a_warning(tmp_path: Path, monkeypatch) -> None:
    from moe.train import alert

    monkeypatch.setattr(alert, "TIMEOUT", 0.2)
    alarm = Alarm("throughput", "slow", "look")
    for command, expected in {
        "no-such-program": "could not be started",
        "false": "exit code 1",
        "sh -c 'sleep 60'": "was ended",
    }.items():
        said: list[str] = []
        start = time.monotonic()
        alert.run_command(command, alarm, run_name="r", step=1, report=said.append)
        assert time.monotonic() - start < 5  # the run does not wait
        for thread in threading.enumerate():
            if thread.name == "alert":
                thread.join(20)
        assert len(said) == 1 and expected in said[0], said


def test_wandb_gets_the_alarm_and_its_failure_is_a_warning(monkeypatch) -> None:
    import wandb

    from moe.train.alert import wandb_alert

    got: list[dict[str, str]] = []
    said: list[str] = []
    monkeypatch.setattr(wandb, "run", SimpleNamespace(alert=lambda **alert: got.append(alert)))
    wandb_alert(Alarm("throughput", "slow", "look"), report=said.append)
    assert got == [{"title": "throughput", "text": "slow. Mend: look"}] and not said
    monkeypatch.setattr(wandb, "run", SimpleNamespace(alert=None))
    wandb_alert(Alarm("throughput", "slow", "look"), report=said.append)
    assert len(said) == 1 and "W&B took no alert" in said[0]


def test_a_run_calls_its_alert_command_and_a_wrong_one_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    from moe.train import alarms as detectors

    monkeypatch.setattr(detectors.DiskSpace, "seen", lambda self, row: "the disk is small")
    script, out = tmp_path / "tell.sh", tmp_path / "out"
    script.write_text(f'#!/bin/sh\necho "$1" > {out}\n')
    script.chmod(0o755)
    assert train(tiny, tmp_path, *SHORT, "max_duration=2ba", f"alert_command={script}")[0] == 0
    assert wait_for(out).startswith("tiny, step 1: the disk is small; likely cause: ")
    capsys.readouterr()
    assert train(tiny, tmp_path, "alert_command=no-such-program -x", name="refused")[0] == 2
    assert "alert_command (no-such-program -x): there is no program 'no-such-program'" in capsys.readouterr().err


# --- events.jsonl -----------------------------------------------------------------------------------------------------


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_events_tell_of_a_kill_a_stop_and_the_end(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    settings = ["max_duration=8ba", "scheduler.t_warmup=1ba", "eval_interval=4ba", "save_interval=2ba"]
    with monkeypatch.context() as patch:
        die_after(3, patch)
        patch.setattr("moe.train.history.History.end", lambda self, state, reason=None: None)  # kill -9 notes nothing
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path, *settings)
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "agreed", lambda self, device: True)
        assert train(tiny, tmp_path, *settings)[0] == 75
    code, folder = train(tiny, tmp_path, *settings)
    assert code == 0
    told = [(event["event"], event["step"]) for event in events(folder) if event["event"] != "checkpoint"]
    saved = [event["step"] for event in events(folder) if event["event"] == "checkpoint"]
    assert told == [
        ("start", 0),
        ("evaluation", 0),
        ("resume", 2),
        ("stop", 3),
        ("resume", 3),
        ("evaluation", 4),
        ("evaluation", 8),
        ("done", 8),
    ]
    assert saved == [2, 3, 4, 6, 8]
    assert [event["reached"] for event in events(folder) if "reached" in event] == [0, 3, 3]
    assert all(event["time"] for event in events(folder))
    before = (folder / "events.jsonl").read_text()
    assert train(tiny, tmp_path, *settings)[0] == 0  # complete: nothing has happened
    assert (folder / "events.jsonl").read_text() == before


def test_a_failure_is_an_event_with_its_reason(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    from moe.train.model import MoEModel

    monkeypatch.setattr(MoEModel, "loss", lambda self, *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny, tmp_path, *SHORT)
    (_, last) = events(tmp_path / "run")
    assert (last["event"], last["step"], last["reason"]) == ("failed", 0, "ZeroDivisionError: division by zero")


def test_a_line_after_one_that_a_kill_left_half_written_is_whole(tmp_path: Path) -> None:
    from moe.train.history import append

    path = tmp_path / "events.jsonl"
    append(path, {"event": "start", "step": 0})
    path.write_bytes(path.read_bytes() + b'{"time": "2026-')
    append(path, {"event": "resume", "step": 0})
    first, _half, last = path.read_text().splitlines()
    assert json.loads(first)["event"] == "start" and json.loads(last)["event"] == "resume"


def test_a_file_of_events_that_cannot_be_written_is_told_once_and_ends_no_run(tmp_path: Path, capsys) -> None:
    from moe.train.history import append

    (tmp_path / "events.jsonl").mkdir()
    for path in (tmp_path / "events.jsonl", tmp_path / "no" / "alarms.jsonl"):
        append(path, {"event": "start"})
        append(path, {"event": "resume"})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"warning: {tmp_path}/events.jsonl cannot be written: Is a directory; training goes on")
    assert second.startswith(f"warning: {tmp_path}/no/alarms.jsonl cannot be written: No such file or directory")
