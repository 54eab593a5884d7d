"""How a run ends before its time: a signal, a limit, a stall, a disk that takes nothing."""

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import moe.train.stop as stop_module
from moe.config import Every, parse_time
from moe.train.callbacks.saver import CheckpointSaver
from moe.train.stop import EXIT_STOPPED as STOPPED
from moe.train.stop import StopSignal
from tests.unit.train.runs import assert_same_run, rows, train


def test_a_step_that_does_not_end_is_abandoned_and_replayed(
    small: Path, tmp_path: Path, whole: Path, monkeypatch, capsys
) -> None:
    from moe.train.composer_model import MoEModel

    signals, plain, calls = [], MoEModel.forward, []
    monkeypatch.setattr(StopSignal, "install", lambda self: signals.append(self))

    def slow(self, batch):
        calls.append(None)
        if len(calls) == 4 * 6 + 2:  # the second of step 7's four microbatches takes longer than PATIENCE
            signals[-1].received, signals[-1].waited = signal.SIGTERM, 16.0
        return plain(self, batch)

    monkeypatch.setattr(MoEModel, "forward", slow)
    settings = ["eval_data=null", "device_train_microbatch_size=2"]
    code, folder = train(small, tmp_path, *settings)
    assert code == STOPPED and len(calls) == 4 * 6 + 2, "the step's other microbatches were not begun"
    assert [path.name for path in folder.glob("step-*")] == ["step-00000006"]
    assert train(small, tmp_path, *settings)[0] == 0
    assert "resumed from step 6" in capsys.readouterr().out
    plain_code, uncut = train(small, tmp_path, *settings, name="uncut")
    assert plain_code == 0
    assert_same_run(folder, uncut)


def test_a_process_that_hangs_after_a_signal_is_ended_before_the_launcher_kills_it(monkeypatch) -> None:
    import moe.train.stop as stop_module

    ended, told = threading.Event(), []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setattr(stop_module, "LAST_RESORT", 0.05)
    monkeypatch.setattr(stop_module.os, "_exit", lambda code: ended.set() if code == STOPPED else None)

    def last_words() -> None:
        told.append(stop.reason)
        raise OSError(28, "No space left on device")  # what cannot be told is no reason to stay

    stop = StopSignal()
    stop.training, stop.last_words = True, last_words
    stop._handle(signal.SIGTERM, None)
    assert ended.wait(5) and told == ["SIGTERM"]
    ended.clear()
    stop = StopSignal()
    stop.training = True
    stop._handle(signal.SIGTERM, None)
    stop.step_ended()  # it saves now, which nothing may cut short
    assert not ended.wait(0.3)


def test_without_a_launcher_that_would_kill_a_slow_step_may_end(monkeypatch) -> None:
    codes: list[int] = []
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(stop_module, "LAST_RESORT", 0.05)
    monkeypatch.setattr(stop_module.os, "_exit", codes.append)
    stop = StopSignal()
    stop.training = True
    stop._handle(signal.SIGTERM, None)
    time.sleep(0.2)
    stop.step_ended()
    assert stop.wanted and stop.waited > 0.05 and not codes


def test_a_signal_before_the_first_step_says_so(monkeypatch, capfd) -> None:
    codes: list[int] = []
    monkeypatch.setattr(stop_module.os, "_exit", codes.append)
    StopSignal()._handle(signal.SIGTERM, None)
    assert codes == [STOPPED] and capfd.readouterr().out == "stopped by SIGTERM before a step was taken\n"


def test_a_step_that_is_given_up_leaves_its_last_words_in_the_run_folder(
    small: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    from moe.train.composer_model import MoEModel

    signals, plain, calls = [], MoEModel.forward, []
    monkeypatch.setattr(StopSignal, "install", lambda self: signals.append(self))

    def slow(self, batch):
        calls.append(None)
        if len(calls) == 3:
            signals[-1].received = signal.SIGTERM
            signals[-1].last_words()
        return plain(self, batch)

    monkeypatch.setattr(MoEModel, "forward", slow)
    folder = train(small, tmp_path, "eval_data=null")[1]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert any("in a step that did not end" in str(event.get("reason")) for event in events)
    assert "the step did not end within 25 s of SIGTERM" in capsys.readouterr().out


def test_the_time_limit_saves_and_exits_75(small: Path, tmp_path: Path, whole: Path, monkeypatch, capsys) -> None:
    from moe.train.callbacks.console import Console

    plain = Console.batch_end
    with monkeypatch.context() as patch:
        patch.setattr(Console, "batch_end", lambda self, *args: (time.sleep(0.3), plain(self, *args))[1])
        code, folder = train(small, tmp_path, "eval_data=null", "time_limit=2s")
    assert re.search("stopped by time_limit; step [0-9]+ is saved in", capsys.readouterr().out)
    assert code == STOPPED and json.loads((folder / "run.json").read_text())["state"] == "stopped"
    assert 0 < len(rows(folder, "train/loss")) < 20
    assert train(small, tmp_path, "eval_data=null")[0] == 0
    assert "changed since the checkpoint" not in capsys.readouterr().out, "a limit of one start is no change of the run"
    assert_same_run(folder, whole)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(28, "No space left"), BrokenPipeError()])
def test_a_terminal_that_goes_away_does_not_end_a_run(monkeypatch, capsys, error: OSError) -> None:
    from moe.common.units import complain, say

    class Gone:
        def write(self, text: str) -> None:
            raise error

    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", Gone())
    complain("an error")
    say("a line")
    assert sys.stdout.name == os.devnull, "what follows goes nowhere"
    say("another")


@pytest.mark.parametrize("allowed", [1, 3])
def test_a_full_disk_stops_the_run_after_as_many_failed_saves_as_configured(
    small: Path, tmp_path: Path, monkeypatch, capsys, allowed: int
) -> None:
    import moe.train.callbacks.saver as saver

    plain = saver.write_checkpoint

    def full(folder, step, *args):
        if step > 4:
            raise OSError(28, "No space left on device")
        return plain(folder, step, *args)

    monkeypatch.setattr(saver, "write_checkpoint", full)
    settings = ["eval_data=null", "save_interval=4ba", f"max_failed_saves={allowed}"]
    code, folder = train(small, tmp_path, *settings)
    told = capsys.readouterr()
    assert code == 1 and f"{allowed} saves in a row failed (max_failed_saves)" in told.err
    assert told.out.count("the next save tries again") == allowed - 1
    assert "bytes, " in told.err and "are free" in told.err
    assert [path.name for path in folder.glob("step-*")] == ["step-00000004"]
    assert max(rows(folder, "train/loss")) <= 4 * (allowed + 2)


@pytest.mark.parametrize("before", [True, False], ids=["signal, then the save", "the save, then a signal"])
def test_a_signal_does_not_cut_short_a_save_that_waits_for_the_one_before(
    tmp_path: Path, monkeypatch, before: bool
) -> None:
    """The training thread is not stuck then, however long the disk takes."""
    codes: list[int] = []
    monkeypatch.setattr(stop_module, "LAST_RESORT", 0.2)
    monkeypatch.setattr(stop_module.os, "_exit", codes.append)
    stop = StopSignal()
    stop.training = True
    saver = CheckpointSaver(
        tmp_path,
        every=Every(parse_time("1ba"), 1, 10),
        keep=1,
        keep_every=None,
        max_failed=1,
        stop=stop,
        manifest={},
        report=print,
        event=lambda *args, **more: None,
    )

    def slow_write() -> None:
        while not before and stop.received is None:
            if stop.saving:
                stop._handle(signal.SIGTERM, None)
        time.sleep(0.6)

    state = SimpleNamespace(
        timestamp=SimpleNamespace(batch=3, token=3, epoch=0, sample_in_epoch=3),
        state_dict=lambda: {"dataset_state": {"train": {}}},
        fsdp_enabled=False,
    )
    if before:
        stop._handle(signal.SIGTERM, None)
    saver._thread = threading.Thread(target=slow_write)
    saver._thread.start()
    saver.save(state, SimpleNamespace(log_metrics=lambda row: None))  # type: ignore[arg-type]
    saver.join()
    assert stop.received == signal.SIGTERM and codes == []


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_is_killed_while_it_hands_over_a_batch_is_an_interruption(
    small: Path, tmp_path: Path, monkeypatch, capsys, error
) -> None:
    from moe.data.read.batches import Collate

    plain, made = Collate.__call__, []

    def broken(self, rows):
        made.append(None)
        if len(made) > 3:
            raise error
        return plain(self, rows)

    monkeypatch.setattr(Collate, "__call__", broken)
    code, folder = train(small, tmp_path, "eval_data=null")
    err = capsys.readouterr().err
    assert code == STOPPED and "worker exited unexpectedly" in err and "Traceback" not in err
    assert json.loads((folder / "run.json").read_text())["state"] == "stopped"


def test_a_process_that_is_suspended_after_a_signal_saves_as_it_wakes(monkeypatch) -> None:
    """B6: the 25 s after a signal were a clock's: a laptop's lid, SIGSTOP, and the process ended without its save, or
    gave up the step.
    """
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setattr(stop_module, "LAST_RESORT", 1.2)
    monkeypatch.setattr(stop_module, "PATIENCE", 1.0)
    child = os.fork()
    if child == 0:
        stop = StopSignal()
        stop.training = True
        stop._handle(signal.SIGTERM, None)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.4)
        overdue = stop.overdue
        stop.step_ended()
        os._exit(41 if overdue else 42)
    os.waitpid(child, os.WUNTRACED)
    time.sleep(1.5)
    os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
