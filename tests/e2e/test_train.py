"""The real scripts in subprocesses: signals, a hang, damaged data, launchers. What no signal or trace needs runs in
this process, by the same `main`. Ranks are in test_ranks.py, kills in test_chaos.py.

rowNN: rows of the table in docs/resume.md.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.kills import session_members
from tests.e2e.processes import (
    COMPOSER,
    TRACED,
    TRAIN,
    finish,
    here,
    make_config,
    nobody_left,
    start,
    traced,
    wait_for,
)
from tests.tiny import tiny_config, write_config
from tests.unit.train.runs import assert_same_run, rows


@pytest.fixture(scope="module")
def config(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_config(tiny, tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def reference(config: Path) -> Path:
    epochs = float(here(str(config), "run_name=reference").split(" epochs)")[0].split("(")[-1])
    assert epochs > 1.2, "the reference must cross an epoch's end"
    return config.with_name("reference")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_row01_a_signal_saves_exits_75_and_the_same_command_goes_on(config: Path, reference: Path, number: int) -> None:
    """Stock saves nothing. SIGTERM goes to the whole group, as `timeout` sends it; SIGUSR1 to the rank. The command
    that goes on is a process of its own, or the same `main` in this one.
    """
    name = signal.Signals(number).name.lower()
    log = config.with_name(f"{name}.log")
    settings = [str(config), f"run_name={name}", "save_interval=1000ba"]
    command = [sys.executable, TRAIN, *settings]
    process = start(command, log, new=number == signal.SIGTERM)
    wait_for("step 30/150", log, process)
    if number == signal.SIGTERM:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    stopped = time.monotonic()
    text = finish(process, log, code=75)
    assert time.monotonic() - stopped < 30 and "run the same command again" in text
    saved = sorted(config.with_name(name).glob("step-*"))[-1]
    text = finish(start(command, log), log) if number == signal.SIGTERM else here(*settings)
    assert f"resumed from step {int(saved.name[5:])}" in text and int(saved.name[5:]) >= 30
    assert_same_run(config.with_name(name), reference)


def test_row01_a_second_ctrl_c_ends_at_once_and_loses_nothing_that_was_saved(config: Path) -> None:
    """Saving takes seconds here, so that the second Ctrl+C comes in the middle of the save that the first began."""
    log, folder = config.with_name("twice.log"), config.with_name("twice")
    command = [sys.executable, TRACED, str(config), "run_name=twice", "save_interval=10ba", "eval_data=null"]
    process = start(command, log, **traced(config.parent, CHAOS_SLOW="1.5"))
    wait_for("step 10/150", log, process)
    while not (folder / "step-00000010").exists():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, log.read_text()
    os.killpg(process.pid, signal.SIGINT)
    pressed = time.monotonic()
    text = finish(process, log, code=130)
    assert time.monotonic() - pressed < 3
    while session_members(process.pid):
        assert time.monotonic() - pressed < 30
        time.sleep(0.05)
    text = log.read_text()  # with what Python's tracker of shared memory says after the process
    assert "Traceback" not in text and "leaked" not in text
    from moe.train.checkpointing.checkpoints import newest_checkpoint, step_folders

    assert newest_checkpoint(step_folders(folder))[0].step >= 10


def test_row08_a_shard_that_goes_missing_or_lies_is_a_clear_error_with_workers_too(tiny: Path, tmp_path: Path) -> None:
    """Stock trains on flipped bytes as garbage, and hangs where a shard is missing."""
    shutil.copytree(tiny / "data", tmp_path / "data")
    settings = tiny_config(tiny, train_data={"local": str(tmp_path / "data"), "verify": "full"}, num_workers=1)
    config = write_config(tmp_path / "c.yaml", {**settings, "save_folder": str(tmp_path / "run"), "eval_data": None})
    shard, log = tmp_path / "data/train/shard.00000.mds", tmp_path / "log"
    good = shard.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    shard.write_bytes(flipped)
    command = [sys.executable, TRAIN, str(config), "stall_timeout=60s"]
    text = finish(start(command, log), log, code=2)
    assert "shard.00000.mds: its bytes changed" in text and "Traceback" not in text
    ids = bytearray(good)
    ids[-40 * 64 :] = b"\xff" * (40 * 64)  # token 65535, in some samples
    shard.write_bytes(ids)
    process = start([*command, "train_data.verify=size"], log)
    text = finish(process, log, code=1)
    assert "shard.00000.mds: token id 65535 in sequence" in text and "the vocabulary has 300" in text
    assert "Traceback" not in text, text
    nobody_left(process)


def test_the_watchdog_ends_a_run_whose_loader_hangs_with_the_workers_stack(config: Path) -> None:
    log, folder = config.with_name("hang.log"), config.with_name("hang")
    command = [sys.executable, TRACED, str(config), "run_name=hang", "stall_timeout=4s", "eval_data=null"]
    process = start(command, log, **traced(config.parent, CHAOS_HANG="400"))
    text = finish(process, log, code=75)
    assert "no progress for 0m04s (stall_timeout) after step" in text and "run the same command again" in text
    assert 'traced.py", line' in text and "in hang" in text, "the worker's stack"
    stacks = list((folder / "stacks").iterdir())
    assert len(stacks) == 1 and "_train_loop" in stacks[0].read_text()
    nobody_left(process)


def test_bad_input_under_the_launcher_exits_2_without_a_traceback(config: Path) -> None:
    log = config.with_name("bad.log")
    text = finish(start([COMPOSER, TRAIN, str(config), "model.top_k=9", "seeed=1"], log), log, code=2)
    assert "model.top_k (9) exceeds model.n_experts (4); lower top_k" in text
    assert "seeed: unknown key; did you mean seed?" in text and "Traceback" not in text


def test_a_run_under_torchrun_is_stopped_and_resumes(config: Path) -> None:
    """Its resume ended in MissingEnvironmentError: NODE_RANK. torchrun answers 1 to a stop: run.json knows."""
    log, folder = config.with_name("torchrun.log"), config.with_name("torchrun")
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2", TRAIN]
    command = [*torchrun, str(config), "run_name=torchrun", "eval_data=null", "max_duration=60ba"]
    process = start(command, log, new=True, OMP_NUM_THREADS="1")
    wait_for("step 10/60", log, process)
    process.send_signal(signal.SIGTERM)
    finish(process, log, code=1)
    assert json.loads((folder / "run.json").read_text())["state"] == "stopped"
    out = finish(start(command, log, OMP_NUM_THREADS="1"), log)
    assert "resumed from step" in out and list(rows(folder, "train/loss")) == list(range(1, 61))
