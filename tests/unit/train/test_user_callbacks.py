"""Callbacks that the yaml names: what they count, draw, log and keep, and what is refused."""

import hashlib
import json
import random
import re
import signal
import sys
from pathlib import Path

import numpy
import pytest
import torch

from moe.cli.main import main as moe
from moe.train.callbacks.own_random import own_random
from moe.train.stop import EXIT_STOPPED, StopSignal
from tests.unit.train.runs import die, rows, train

COUNTS = """
import random

import numpy
import torch
from composer import Callback, Event


class Counts(Callback):
    def __init__(self, every="1ba"):
        self.every, self.counts = int(every.removesuffix("ba")), {}

    def run_event(self, event, state, logger):
        self.counts[event.value] = self.counts.get(event.value, 0) + 1
        draw = random.random() + numpy.random.rand() + torch.rand(()).item()
        if event == Event.BATCH_END and int(state.timestamp.batch) % self.every == 0:
            logger.log_metrics({"mine/draw": draw})
        if event == Event.EVAL_END:
            logger.log_metrics({"mine/evaluations": self.counts["eval_end"]})

    def state_dict(self):
        return {"counts": self.counts}

    def load_state_dict(self, state):
        self.counts = state["counts"]
"""
# of each start, or of what has happened after a checkpoint and is not done again
OF_A_START = ("init", "before_load", "after_load", "fit_start", "fit_end", "batch_checkpoint", "epoch_checkpoint")
OF_A_START += ("eval_standalone_start", "eval_standalone_end", "eval_before_all", "eval_after_all")


def state_of(folder: Path) -> dict:
    newest = sorted(folder.glob("step-*"))[-1]
    return torch.load(newest / "state.pt", weights_only=False)["state"]["callbacks"]["UserCallbacks"]


def events(folder: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def test_a_counting_callback_ends_as_in_an_uninterrupted_run_and_moves_nothing(
    small: Path, tmp_path: Path, whole: Path, write, monkeypatch
) -> None:
    """Killed; a step abandoned after a signal; stopped within an evaluation. With dropout, and draws at every event."""
    from moe.train.callbacks.learning_rate import LearningRate
    from moe.train.composer_model import MoEModel

    write("counts_file", COUNTS)
    settings = ["callbacks=[{class: counts_file.Counts, every: 3ba}]", "log_interval=5ba", "save_interval=8ba"]
    settings += ["eval_interval=10ba", f"eval_data={{local: {small}/data, max_batches: 2}}"]
    code, uncut = train(small, tmp_path, *settings, name="uncut")
    assert code == 0

    die(small, tmp_path, 12, *settings, "save_interval=10ba")  # resumes behind an evaluation that was made
    signals: list[StopSignal] = []
    monkeypatch.setattr(StopSignal, "install", lambda self: signals.append(self))
    with monkeypatch.context() as patch:
        plain = LearningRate.batch_start

        def slow(self, state, logger):
            plain(self, state, logger)
            if int(state.timestamp.batch) == 18:  # step 19 does not end in time after a signal
                signals[-1].received, signals[-1].waited = signal.SIGTERM, 16.0

        patch.setattr(LearningRate, "batch_start", slow)
        assert train(small, tmp_path, *settings)[0] == EXIT_STOPPED
    assert (tmp_path / "run/step-00000018").is_dir()
    with monkeypatch.context() as patch:
        evaluate = MoEModel.eval_forward

        def interrupted(self, *args):
            signals[-1].received = signal.SIGTERM
            return evaluate(self, *args)

        patch.setattr(MoEModel, "eval_forward", interrupted)
        assert train(small, tmp_path, *settings)[0] == EXIT_STOPPED
    assert (tmp_path / "run/step-00000020").is_dir(), "in the evaluation, behind its first batch"
    code, folder = train(small, tmp_path, *settings)
    assert code == 0

    found, expected = (state_of(run)["counts_file.Counts"]["counts"] for run in (folder, uncut))
    assert expected["batch_end"] == 40 and expected["before_forward"] == 40 and expected["eval_end"] == 4
    kept = expected.keys() - set(OF_A_START)
    assert len(kept) > 12 and {name: found[name] for name in kept} == {name: expected[name] for name in kept}
    for key in ("mine/draw", "mine/evaluations", "metrics/eval/loss"):
        assert rows(folder, key) == rows(uncut, key), key
    assert list(rows(folder, "mine/draw")) == list(range(3, 40, 3)), "a row of its own"
    assert len(set(rows(folder, "mine/draw").values())) == 13
    losses, without = rows(folder, "train/loss"), rows(whole, "train/loss")
    assert len(losses) > 8 and losses == {step: without[step] for step in losses}
    assert losses == rows(uncut, "train/loss"), "a row of the callback's holds nothing of an earlier step"


def test_draws_within_are_the_positions_and_move_none_without() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), numpy.random.rand(), torch.rand(()).item()

    def seed() -> None:
        random.seed(1), numpy.random.seed(1), torch.manual_seed(1)

    seed()
    plain = [draws(), draws()]
    seed()
    first = draws()
    with own_random(17, 3, "batch_end"):
        inside = draws()
        torch.manual_seed(5)
    assert [first, draws()] == plain
    with own_random(17, 3, "batch_end"):
        assert draws() == inside
    with pytest.raises(KeyError), own_random(17, 4, "batch_end"):
        assert draws() != inside
        raise KeyError
    seed()
    assert draws() == plain[0]


MARKS = """
from pathlib import Path

from composer import Callback

Path(__file__).with_name("imported").touch()


class Plain(Callback):
    def __init__(self, name="it"):
        self.steps = 0

    def batch_end(self, state, logger):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]
"""
STEPS = ["eval_data=null", "scheduler.name=constant_with_warmup", "scheduler.t_warmup=0ba"]


def test_what_is_added_changed_and_removed_is_an_event_and_nothing_else_imports(
    small: Path, tmp_path: Path, write, capsys
) -> None:
    imported, callbacks = tmp_path / "imported", "callbacks=[{class: marks.Plain, name: é}, {class: marks.Plain}]"
    write("marks", MARKS)
    assert train(small, tmp_path, *STEPS, "max_duration=2ba")[0] == 0
    assert not imported.exists() and not (tmp_path / "run/callbacks").exists()
    assert train(small, tmp_path, *STEPS, "max_duration=4ba", callbacks)[0] == 0
    assert imported.exists()
    first = next((tmp_path / "run/callbacks").iterdir())
    assert first.read_text() == MARKS and len(list((tmp_path / "run/callbacks").iterdir())) == 1
    write("marks", MARKS + "# another\n")
    capsys.readouterr()
    code, folder = train(small, tmp_path, *STEPS, "max_duration=6ba", callbacks)
    assert code == 0 and state_of(folder) == {"marks.Plain": {"steps": 4}, "marks.Plain#2": {"steps": 4}}
    told = "changed since the checkpoint: the source of marks.Plain (sha256 "
    assert told in capsys.readouterr().out
    assert {path.read_text() for path in (folder / "callbacks").iterdir()} == {MARKS, MARKS + "# another\n"}

    record = json.loads((folder / "run.json").read_text())["callbacks"]
    assert record == json.loads((folder / "step-00000006/manifest.json").read_text())["callbacks"]
    assert record["marks.Plain"] == hashlib.sha256((MARKS + "# another\n").encode()).hexdigest()

    # from here on nothing names it but the run folder and its checkpoints
    write("marks", MARKS)
    imported.unlink()
    with_yaml = tmp_path / "with.yaml"
    with_yaml.write_text((folder / "config.yaml").read_text())
    assert "class: marks.Plain" in with_yaml.read_text()
    commands = [
        ["runs", str(tmp_path)],
        ["watch", str(folder), "--once"],
        ["report", str(folder), "--out", str(tmp_path / "page.html")],
        ["diff", str(folder), str(folder)],
        ["estimate", str(with_yaml)],
        ["generate", str(folder), "the", "--max-new-tokens", "2"],
        ["eval", str(folder), "--data", f"{small}/data", "--max-batches", "1"],
        ["export", str(folder), "--out", str(tmp_path / "hf")],
    ]
    for command in commands:
        assert moe(command) == 0, (command, capsys.readouterr().err)
    for more in (["max_duration=6ba"], ["max_duration=8ba"], [f"load_path={folder}", "run_name=b"]):
        name = "other" if "load_path" in more[0] else "run"
        assert train(small, tmp_path, *STEPS, *more, name=name)[0] == 0
    assert not imported.exists() and "marks" not in sys.modules
    capsys.readouterr()
    moe(["check", str(with_yaml), "--fast"])
    assert re.search(r"pass +callbacks +marks.Plain, marks.Plain#2\n", capsys.readouterr().out) and imported.exists()

    changes = [(one["step"], change) for one in events(folder, "change") for change in one["changes"]]
    hashes = sorted(path.stem.partition("-")[2] for path in (folder / "callbacks").iterdir())
    entries = [{"class": "marks.Plain", "name": "é"}, {"class": "marks.Plain"}]
    assert (2, {"key": "callbacks", "was": [], "now": entries}) in changes
    sources = [change for step, change in changes if step == 4 and change["key"].startswith("callbacks.")]
    assert [change["key"] for change in sources] == ["callbacks.marks.Plain", "callbacks.marks.Plain#2"]
    assert sorted([sources[0]["was"][:12], sources[0]["now"][:12]]) == hashes
    assert (6, {"key": "callbacks", "was": entries, "now": []}) in changes


ENDS = """
from composer import Callback


class Ends(Callback):
    def __init__(self, how):
        self.how, self.what = how, None

    def fit_start(self, state, logger):
        self.what = len if self.how == "late state" else None

    def batch_end(self, state, logger):
        if int(state.timestamp.batch) == 3:
            if self.how == "state":
                self.what = object()
            elif self.how == "stops":
                state.stop_training()
            elif self.how == "exits":
                raise SystemExit(0)
            elif self.how == "fails":
                raise KeyError("mine")

    def eval_after_all(self, state, logger):
        logger.log_metrics({"mine/last": 1.0})

    def state_dict(self):
        return {"what": self.what}
"""


def test_how_a_callback_ends_a_run(small: Path, tmp_path: Path, write, capsys) -> None:
    write("ends_file", ENDS)

    def run(how: str, *more: str) -> tuple[int, Path]:
        entry = f"callbacks=[{{class: ends_file.Ends, how: {how}}}]"
        return train(small, tmp_path, *STEPS, "save_interval=4ba", "max_duration=8ba", entry, *more, name=how)

    def state(how: str) -> tuple[str, int]:
        last = [json.loads(line) for line in (tmp_path / how / "events.jsonl").read_text().splitlines()][-1]
        return json.loads((tmp_path / how / "run.json").read_text())["state"], last["step"]

    assert run("stops")[0] == 0
    assert "stopped by a callback at step 3 of 8" in capsys.readouterr().out and state("stops") == ("stopped", 3)
    assert run("stops")[0] == 0 and state("stops") == ("done", 8)
    with pytest.raises(KeyError, match="mine"):  # a traceback, and exit code 1
        run("fails")
    assert state("fails") == ("failed", 2)
    with pytest.raises(RuntimeError, match=r"ends_file.Ends ended the run at batch_end: SystemExit"):
        run("exits")
    capsys.readouterr()
    code, folder = run("state")
    assert code == 1 and "the state of ends_file.Ends cannot be kept" in capsys.readouterr().err
    assert not list(folder.glob("step-*")) and state("state") == ("failed", 3)
    code, folder = run("late state")
    assert code == 2 and "the state of ends_file.Ends cannot be kept" in capsys.readouterr().err
    assert not (folder / "metrics.jsonl").read_text() and state("late state") == ("failed", 0)
    evaluated = [f"eval_data={{local: {small}/data, max_batches: 1}}", "eval_interval=8ba"]
    assert list(rows(run("nothing", *evaluated)[1], "mine/last")) == [8], "what is logged behind the last row"


def test_the_callback_of_the_page_on_extending_and_composers_own_do_what_it_says(
    small: Path, tmp_path: Path, write, capsys
) -> None:
    page = (Path(__file__).parents[3] / "docs/extending.md").read_text()
    code = re.search(r"This one is `my_file.py`:\n\n```python\n(.*?)^```", page, re.M | re.S)
    assert code
    write("my_file", code[1])
    named = ["NaNMonitor", "LRMonitor", "MemoryMonitor", "OptimizerMonitor", "EarlyStopper", "ThresholdStopper"]
    assert all(f"`{name}`" in page for name in named)
    more = {
        "EarlyStopper": ", monitor: loss, dataloader_label: eval, patience: 4ba",
        "ThresholdStopper": ", monitor: loss, dataloader_label: eval, threshold: 9.0, comp: gt",
    }
    entries = [f"{{class: composer.callbacks.{name}{more.get(name, '')}}}" for name in named]
    callbacks = f"callbacks=[{{class: my_file.LargestWeight, every: 3ba}}, {', '.join(entries)}]"
    settings = [*STEPS[1:], callbacks, f"eval_data={{local: {small}/data, max_batches: 1}}", "eval_interval=2ba"]
    assert train(small, tmp_path, *settings, "max_duration=4ba")[0] == 0
    code, folder = train(small, tmp_path, *settings, "max_duration=8ba")
    assert code == 0 and "stopped by a callback" not in capsys.readouterr().out
    largest, so_far = rows(folder, "weights/largest"), rows(folder, "weights/largest_so_far")
    assert list(largest) == [3, 6]
    assert so_far == {3: largest[3], 6: max(largest.values())}
    assert state_of(folder) == {"my_file.LargestWeight": {"so_far": so_far[6]}}
    stops = f"callbacks=[{entries[-1].replace('gt', 'lt')}]"
    assert train(small, tmp_path, *settings, stops, "max_duration=12ba")[0] == 0
    assert "stopped by a callback at step 8 of 12" in capsys.readouterr().out, "in the evaluation that is made again"
    stops = stops.replace("9.0", str(rows(folder, "metrics/eval/loss")[8] - 1e-3))
    assert train(small, tmp_path, *settings, stops, "max_duration=12ba")[0] == 0
    assert "stopped by a callback at step 10 of 12" in capsys.readouterr().out
