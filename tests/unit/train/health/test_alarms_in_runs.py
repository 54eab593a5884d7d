"""Planted errors in whole runs: each is told once, with cause and fix."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from composer.trainer import trainer

from moe.train.health.detectors import DeadExpert
from moe.train.stop import StopSignal
from tests.unit.train.runs import SHORT, die_after, rows, train


def alarms(folder: Path) -> dict[str, dict]:
    """By name; none twice, but for those that the speed of the machine may raise."""
    path = folder / "alarms.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert all(set(alarm) == {"time", "step", "name", "message", "fix"} for alarm in found)
    names = [alarm["name"] for alarm in found if alarm["name"] not in ("throughput", "data_wait")]
    assert len(set(names)) == len(names)
    return {alarm["name"]: alarm for alarm in found}


def test_a_learning_rate_four_hundred_times_too_high_is_told(tiny: Path, tmp_path: Path, capsys) -> None:
    code, folder = train(tiny, tmp_path, *SHORT, "optimizer.lr=2.0")
    told = alarms(folder)["loss_rising"]
    assert code == 0 and told["step"] < 10 and "optimizer.lr" in told["fix"]
    assert f"alarm: {told['message']}\n       fix: halve optimizer.lr" in capsys.readouterr().out
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
    from moe.data.read import waiting
    from moe.data.read.dataset import TokenDataset
    from moe.train.callbacks import throughput
    from moe.train.composer_model import MoEModel

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
    for module in (throughput, waiting):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_sleeping_loader_is_told(tiny: Path, tmp_path: Path, clock: SimpleNamespace) -> None:
    clock.sample = 0.01
    code, folder = train(tiny, tmp_path, *SHORT)
    told = alarms(folder)["data_wait"]
    assert code == 0 and told["step"] == 4 and "num_workers" in told["fix"]
    assert rows(folder, "throughput/data_wait")[20] == pytest.approx(0.08 / 0.18)


def test_what_the_device_still_computes_is_no_wait_for_data(tiny: Path, tmp_path: Path, clock, monkeypatch) -> None:
    """Composer adds up whether any rank has no more batches, and reads the sum: that comes when the device is done."""
    plain = trainer.dist.all_reduce

    def busy_device(tensor, reduce_operation="SUM"):
        if tensor.dtype == torch.uint8 and reduce_operation == "MAX":
            clock.now += 0.03
        plain(tensor, reduce_operation)

    monkeypatch.setattr(trainer.dist, "all_reduce", busy_device)
    clock.sample = 0.0001
    code, folder = train(tiny, tmp_path, *SHORT)
    assert code == 0 and "data_wait" not in alarms(folder)
    assert rows(folder, "throughput/data_wait")[20] == pytest.approx(0.0008 / 0.1308)


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
    assert code == 0 and told["step"] == 1 and "save_num_checkpoints_to_keep" in told["fix"]


def test_gradients_that_are_not_finite_are_told_once(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    from moe.train.composer_model import MoEModel

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
