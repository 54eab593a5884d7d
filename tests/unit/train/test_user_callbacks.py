"""Callbacks that the yaml names: what they count, draw, log and keep, and what is refused."""

import hashlib
import json
import random
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
import torch

from moe.cli.main import main as moe
from moe.common.errors import InputError
from moe.config import ConfigError, load_config
from moe.train.callbacks.own_random import own_random
from moe.train.callbacks.user import UserCallbacks
from moe.train.callbacks.user_classes import load_user_classes
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


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes a module into the working directory, which is this test's own, in the place of one that was imported."""
    monkeypatch.chdir(tmp_path)
    path, names = list(sys.path), set()

    def written(name: str, code: str) -> None:
        sys.modules.pop(name, None)
        names.add(name)
        (tmp_path / f"{name}.py").write_text(code)

    yield written
    sys.path[:] = path
    for name in names:
        sys.modules.pop(name, None)


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


KINDS = """
from composer import Callback
from composer.core import Algorithm
from composer.loggers import LoggerDestination
from composer.callbacks import SpeedMonitor


class Takes(Callback):
    def __init__(self, every, size=3):
        if size < 0:
            raise ValueError(f"size is {size}")


class Nothing(Callback):
    pass


class Exits(Callback):
    def __init__(self):
        raise SystemExit(0)


class Log(LoggerDestination):
    pass


class Change(Algorithm):
    pass


class Speed(SpeedMonitor):
    pass


class Keeps(Callback):
    def __init__(self, what):
        self.what = {"set": {1}, "lambda": lambda: 1, "class": Takes("1ba"), "none": None}[what]

    def state_dict(self):
        return {"what": self.what}


def function():
    pass
"""


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"class": "kinds_file.Takes"}, "missing a required argument: 'every'; it takes every, size=3"),
        ({"class": "kinds_file.Takes", "every": 1, "evry": 2}, "unexpected keyword argument 'evry'; it takes every"),
        ({"class": "kinds_file.Takes", "every": 1, "size": -1}, "ValueError: size is -1 .*kinds_file.py, line 11"),
        ({"class": "kinds_file.Nothing", "every": 1}, "argument 'every'; it takes no arguments"),
        ({"class": "kinds_file.Exits"}, "cannot be made with no arguments: SystemExit: 0"),
        ({"class": "kinds_file.Log"}, "is a logger, which acts after the checkpoint is saved"),
        ({"class": "kinds_file.Change"}, "is an algorithm of Composer's"),
        ({"class": "kinds_file.Speed"}, "under the names that the run logs itself"),
        ({"class": "kinds_file.function"}, "is no class"),
        ({"class": "pathlib.Path"}, "is no subclass of composer.Callback"),
        ({"class": "kinds_file.Take"}, "kinds_file has no Take; it has .*Takes, Nothing"),
        ({"class": "kinds_fil.Takes"}, "there is no module kinds_fil, neither in "),
        ({"class": "kinds_file.more.Takes"}, "there is no module kinds_file.more"),
        ({"class": "imports_file.Any"}, "imports_file cannot be imported: ModuleNotFoundError: .*lambdas_of_nobody"),
        ({"class": "syntax_file.Any"}, r"SyntaxError: .*syntax_file.py, line 1\)"),
        ({"class": "exits_file.Any"}, r"exits_file cannot be imported: SystemExit: 3 \(.*exits_file.py, line 1\)"),
        ({"class": "json.Any"}, "json is both .* and an installed module"),
        ({"class": "kinds_file.Keeps", "what": "lambda"}, "the state of kinds_file.Keeps#2 cannot be kept"),
        ({"class": "kinds_file.Keeps", "what": "class"}, "cannot be kept in a checkpoint: .*kinds_file.Takes"),
    ],
)
def test_what_cannot_be_used_is_one_message(entry: dict, message: str, tmp_path: Path, write) -> None:
    for name, code in {
        "imports_file": "import lambdas_of_nobody",
        "syntax_file": "a b",
        "exits_file": "exit(3)",
    }.items():
        write(name, code)
    write("kinds_file", KINDS)
    (tmp_path / "json.py").touch()
    good = {"class": "kinds_file.Keeps", "what": "none"}
    with pytest.raises(InputError, match=message) as caught:
        UserCallbacks(load_user_classes([good, entry]), seed=1)
    assert entry["class"] in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_says_what_is_wrong_with_an_entry_and_imports_nothing(small: Path) -> None:
    entries = "[{every: 1ba}, nothing.here.Class, {class: Name}, {class: composer.algorithms.EMA}, "
    entries += "{class: composer.algorithms.MixUp}, {class: composer.callbacks.CheckpointSaver}, {class: a.B, c d: 1}]"
    with pytest.raises(ConfigError) as caught:
        load_config(small / "tiny.yaml", [f"callbacks={entries}"])
    starts = ["[0] (", "[1] (nothing.here.Class)", "[2].class (Name)", "[3].class (", "[4].class (", "[5].class ("]
    assert len(caught.value.faults) == 7
    for fault, start in zip(caught.value.faults, [*starts, "[6].c d:"], strict=True):
        assert fault.startswith(f"callbacks{start}")
    assert "averages buffers" in caught.value.faults[3] and "the loss is computed in forward" in caught.value.faults[4]
    for value in ("{class: a.B}", "a.B", "null"):
        with pytest.raises(ConfigError, match=r"callbacks: is .*; write a list, as \[\.\.\.\]"):
            load_config(small / "tiny.yaml", [f"callbacks={value}"])
    with pytest.raises(ConfigError, match=r"sample_prompts: is a section \(found 'a' in it\); write a list"):
        load_config(small / "tiny.yaml", ["sample_prompts={a: b}"])
    assert "nothing" not in sys.modules
    with pytest.raises(ConfigError, match=r"callbacks\[0\].of\[1\].rate \(1e-3\) is text to yaml; .* as 0.001"):
        load_config(small / "tiny.yaml", ["callbacks=[{class: a.B, of: [1, {rate: 1e-3}]}]"])
    entry = "{class: a.B, when: 2024-05-01, of: [{n: 1.0e-3}, '${seed}'], none: null}"
    config = load_config(small / "tiny.yaml", [f"callbacks=[{entry}]"])
    assert config.callbacks == [{"class": "a.B", "when": "2024-05-01", "of": [{"n": 0.001}, 17], "none": None}]


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


def test_composers_ema_does_what_it_is_refused_for() -> None:
    """Of Composer 0.32.1; where one of these fails on another version, EMA is worth another look."""
    from composer.algorithms.ema.ema import EMAParameters, compute_ema

    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.zeros(2))
    model.register_buffer("bytes_V", torch.arange(64))  # as in MoEModel: what bits per byte count
    average = EMAParameters(model)
    compute_ema(model, average, smoothing=0.9)
    assert not torch.equal(average.named_buffers_dict["bytes_V"], model.bytes_V), "cut to whole numbers"
    begun_on_two_ranks = EMAParameters(torch.nn.Sequential(model))  # as DDP does, it puts a name before all others
    with torch.no_grad():
        model.weight += 1
    compute_ema(model, begun_on_two_ranks, smoothing=0.5)
    assert begun_on_two_ranks.named_parameters_dict["0.weight"].tolist() == [0, 0], "on one rank: averages nothing"
