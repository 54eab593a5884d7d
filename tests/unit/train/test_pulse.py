"""A run on a slow machine tells how far it is between two rows of its logs."""

import re
import time
from pathlib import Path

import moe.train.callbacks.pulse as pulse
from moe.train.callbacks.pulse import Pulse
from tests.unit.train.runs import assert_same_run, train

SETTINGS = ["max_duration=3ba", "scheduler.t_warmup=1ba", "log_interval=3ba", "device_train_microbatch_size=4"]
SETTINGS += ["eval_data.max_batches=2", "eval_interval=3ba"]


def test_slow_steps_and_evaluations_are_told_by_the_clock(small: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Minutes passed without a line where steps are slow; what is logged stays as it is."""
    from moe.train.composer_model import MoEModel

    assert train(small, tmp_path, *SETTINGS, name="fast")[0] == 0
    assert "... in step" not in capsys.readouterr().out, "nothing where there was no silence"
    monkeypatch.setattr(pulse, "SILENCE", 0.1)
    for name in ("forward", "eval_forward"):
        plain = getattr(MoEModel, name)
        slow = lambda self, *args, plain=plain: (time.sleep(0.13), plain(self, *args))[1]  # noqa: E731
        monkeypatch.setattr(MoEModel, name, slow)
    assert train(small, tmp_path, *SETTINGS, name="slow")[0] == 0
    out = capsys.readouterr().out
    step = r"^\.\.\. in step 2/3 since \d s, 1 microbatch done; the last step took \d\.\d s$"
    assert re.search(step, out, re.M), out
    assert re.search(r"^\.\.\. eval at step 3 since \d s, \d batches done$", out, re.M), out
    assert_same_run(tmp_path / "slow", tmp_path / "fast")


def test_a_console_that_speaks_is_not_interrupted(monkeypatch, capsys) -> None:
    monkeypatch.setattr(pulse, "SILENCE", 0.4)
    told = Pulse(lambda: "still here")
    told.start()
    told.start()
    for _ in range(6):
        time.sleep(0.1)
        told.heard()
    assert capsys.readouterr().out == ""
    time.sleep(0.6)
    told.stop()
    assert capsys.readouterr().out == "still here\n"
    time.sleep(0.5)
    assert capsys.readouterr().out == "", "its thread has ended"
