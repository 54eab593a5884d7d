"""The real scripts in subprocesses: kills, signals, ranks. Each start pays Composer's import: there are few of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_config, write_config

ROOT = Path(__file__).resolve().parents[2]
COMPOSER = str(Path(sys.executable).with_name("composer"))
TRAIN = str(ROOT / "train.py")


def start(command: list[str], log: Path) -> subprocess.Popen:
    with open(log, "w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def wait_for(text: str, log: Path, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while text not in log.read_text():
        assert process.poll() is None, f"ended before {text!r}:\n{log.read_text()}"
        assert time.monotonic() < end, f"no {text!r} in {seconds} s:\n{log.read_text()}"
        time.sleep(0.01)


def finish(process: subprocess.Popen, log: Path, code: int = 0, seconds: float = 120) -> str:
    assert process.wait(seconds) == code, log.read_text()
    return log.read_text()


def losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert len(steps) == len(set(steps)), "a step is logged twice"
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(sorted(folder.glob("step-*"))[-1] / "state.pt", weights_only=False)["state"]
    return state["model"]


def assert_same_run(folder: Path, reference: Path) -> None:
    assert losses(folder) == losses(reference)
    expected = final_weights(reference)
    found = final_weights(folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# An epoch and a half, so that runs cross an epoch's end; loader workers; dropout; enough steps to be killed in.
STEPS = {"max_duration": "150ba", "scheduler": {"t_warmup": "10ba"}, "global_train_batch_size": 16}
OFTEN = {"num_workers": 1, "save_interval": "15ba", "eval_interval": "50ba"}


@pytest.fixture(scope="module")
def config(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    settings = tiny_config(tiny, **STEPS, **OFTEN, save_folder=str(folder / "${run_name}"))
    return write_config(folder / "c.yaml", settings)


@pytest.fixture(scope="module")
def reference(config: Path) -> Path:
    log = config.with_name("reference.log")
    text = finish(start([COMPOSER, TRAIN, str(config), "run_name=reference"], log), log)
    epochs = float(text.split(" epochs)")[0].split("(")[-1])
    assert epochs > 1.2, "the reference must cross an epoch's end"
    return config.with_name("reference")


def test_killed_at_any_moment_the_same_command_ends_with_the_same_weights(config: Path, reference: Path) -> None:
    log = config.with_name("killed.log")
    command = [sys.executable, TRAIN, str(config), "run_name=killed"]
    process = start(command, log)
    wait_for("step 50/150", log, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process = start(command, log)
    wait_for("step 100/150", log, process)
    assert "resumed from step" in log.read_text()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finish(start(command, log), log)
    assert_same_run(config.with_name("killed"), reference)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_exits_75_and_the_same_command_goes_on(config: Path, reference: Path, number: int) -> None:
    name = signal.Signals(number).name.lower()
    log = config.with_name(f"{name}.log")
    command = [sys.executable, TRAIN, str(config), f"run_name={name}", "save_interval=1000ba"]
    process = start(command, log)
    wait_for("step 30/150", log, process)
    os.killpg(process.pid, number)  # as a terminal, `timeout` or a scheduler sends it: to the loader workers too
    stopped = time.monotonic()
    text = finish(process, log, code=75)
    assert time.monotonic() - stopped < 30 and "run the same command again" in text
    saved = sorted(config.with_name(name).glob("step-*"))[-1]
    text = finish(start(command, log), log)
    assert f"resumed from step {int(saved.name[5:])}" in text and int(saved.name[5:]) >= 30
    assert_same_run(config.with_name(name), reference)


def test_two_ranks_train_the_same_losses_as_one(config: Path, reference: Path) -> None:
    log = config.with_name("ranks.log")
    command = ["-n", "2", TRAIN, str(config), "run_name=ranks", "model.dropout=0", "max_duration=20ba"]
    text = finish(start([COMPOSER, *command], log), log)
    assert text.count("step 20/20") == 1, "only one rank speaks"
    one = config.with_name("one.log")
    finish(start([sys.executable, TRAIN, *command[3:], "run_name=one"], one), one)
    assert losses(config.with_name("ranks")) == pytest.approx(losses(config.with_name("one")), abs=1e-5)


def test_bad_input_under_the_launcher_exits_2_without_a_traceback(config: Path) -> None:
    log = config.with_name("bad.log")
    text = finish(start([COMPOSER, TRAIN, str(config), "model.top_k=9", "seeed=1"], log), log, code=2)
    assert "model.top_k (9) exceeds model.n_experts (4); lower top_k" in text
    assert "seeed: is no setting; did you mean seed?" in text and "Traceback" not in text
