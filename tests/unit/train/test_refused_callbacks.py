"""Callbacks of the yaml that cannot be used: one message each, before anything of the run is made."""

import sys
from pathlib import Path

import pytest
import torch

from moe.common.errors import InputError
from moe.config import ConfigError, load_config
from moe.train.callbacks.user import UserCallbacks
from moe.train.callbacks.user_classes import load_user_classes

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
    assert len(caught.value.errors) == 7
    for error, start in zip(caught.value.errors, [*starts, "[6].c d:"], strict=True):
        assert error.startswith(f"callbacks{start}")
    assert "averages buffers" in caught.value.errors[3] and "the loss is computed in forward" in caught.value.errors[4]
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
