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
from moe.train.callbacks import progress
from moe.train.callbacks.progress import Progress
from moe.train.callbacks.saver import CheckpointSaver
from moe.train.stop import EXIT_STOPPED as STOPPED
from moe.train.stop import StopSignal
from tests.unit.train.runs import assert_same_run, rows, train


def test_row09_a_token_count_that_does_not_advance_stops_the_run(
    small: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Stock asks the batch for `input_ids`, counts 0 without, and a duration in tokens never ends."""
    from moe.train import loaders

    monkeypatch.setattr(loaders, "_count_tokens", lambda batch: 0)
    assert train(small, tmp_path, "eval_data=null", "max_duration=2560tok")[0] == 1
    assert "the token count stays at 0, so max_duration would never be reached" in capsys.readouterr().err


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


@pytest.mark.parametrize(("steps_done", "code", "state"), [(0, 1, "failed"), (3, STOPPED, "stopped")])
def test_the_watchdog_writes_all_stacks_and_ends_a_run_without_progress(
    tmp_path: Path, capfd, steps_done: int, code: int, state: str
) -> None:
    ended, codes, states = threading.Event(), [], []

    def end(number: int) -> None:
        codes.append(number)
        ended.set()

    watchdog = Progress(0.2, stacks=tmp_path / "stacks", rank=0, note=states.append, end=end)
    watchdog.steps_done = watchdog.step = steps_done

    def hangs_here() -> None:
        ended.wait(10)

    watchdog.watch()
    hangs_here()
    assert codes == [code] and states == [state]
    written = (tmp_path / f"stacks/step-0000000{steps_done}-rank-0.txt").read_text()
    err = capfd.readouterr().err
    assert "hangs_here" in written and "hangs_here" in err and "no progress for 0m00s (stall_timeout)" in err


@pytest.mark.parametrize(
    ("machines", "asked", "seconds"), [(1, "auto", 1800.0), (2, "auto", 300.0), (2, "30m", 1800.0), (1, "5m", 300.0)]
)
def test_over_machines_a_cut_network_is_waited_for_five_minutes(
    monkeypatch, tmp_path: Path, machines: int, asked: str, seconds: float
) -> None:
    """A network that is cut says nothing: every rank waits in a collective."""
    monkeypatch.setattr(progress, "MACHINES", machines)
    stop = SimpleNamespace(leave=None, peers=None)
    config, folder = SimpleNamespace(stall_timeout=asked), SimpleNamespace(path=tmp_path)
    assert progress.build_watchdog(config, folder, stop).stall_timeout == seconds


def test_the_main_threads_stack_comes_first_however_many_threads_there_are(tmp_path: Path, capfd) -> None:
    """faulthandler writes a hundred threads, newest first: the one that hung was missing."""
    ended, idle = threading.Event(), threading.Event()
    others = [threading.Thread(target=idle.wait, name=f"idle-{n}", daemon=True) for n in range(120)]
    for thread in others:
        thread.start()

    def hangs_here() -> None:
        ended.wait(10)

    Progress(0.2, stacks=tmp_path, rank=3, note=lambda state: None, end=lambda code: ended.set()).watch()
    hangs_here()
    idle.set()
    written = (tmp_path / "step-00000000-rank-3.txt").read_text()
    assert "hangs_here" in written.split("\n\n")[0] and "Thread MainThread" in written.splitlines()[0]
    assert all(f"Thread idle-{n} " in written for n in range(120)) and written in capfd.readouterr().err


def test_a_terminal_and_a_disk_that_hang_do_not_keep_the_watchdog(tmp_path: Path, monkeypatch) -> None:
    """The run may hang on what the watchdog would write to."""
    import moe.train.callbacks.progress as progress_module

    ended, hangs = threading.Event(), threading.Event()
    monkeypatch.setattr(progress_module, "REPORT_S", 0.1)
    monkeypatch.setattr(progress_module, "complain", lambda text: hangs.wait(30))
    watchdog = Progress(0.2, stacks=tmp_path, rank=0, note=lambda state: hangs.wait(30), end=lambda code: ended.set())
    watchdog.watch()
    assert ended.wait(10) and list(tmp_path.glob("*.txt"))
    hangs.set()


def test_the_watchdog_ends_the_run_where_nothing_can_be_written(tmp_path: Path) -> None:
    """A disk that is full or gone is what a run may hang on."""
    ended = threading.Event()
    (tmp_path / "stacks").touch()

    def note(state: str) -> None:
        raise OSError(28, "No space left on device")

    Progress(0.2, stacks=tmp_path / "stacks", rank=0, note=note, end=lambda code: ended.set()).watch()
    assert ended.wait(10)


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


def test_the_watchdog_lets_a_run_that_advances_go_on(small: Path, tmp_path: Path, whole: Path, monkeypatch) -> None:
    """Its timeout is far below the run's length, and above a step's."""
    import moe.train.callbacks.progress as progress_module

    ended = []
    monkeypatch.setattr(progress_module.Progress, "_end", lambda self: ended.append(self.step))
    code, folder = train(small, tmp_path, "eval_data=null", "stall_timeout=2s")
    assert code == 0 and not ended
    assert_same_run(folder, whole)
    with monkeypatch.context() as patch:
        from moe.train.callbacks.console import Console

        plain = Console.batch_end
        slow = lambda self, state, logger: (time.sleep(3.5 * (state.timestamp.batch == 2)), plain(self, state, logger))  # noqa: E731
        patch.setattr(Console, "batch_end", slow)
        train(
            small,
            tmp_path,
            "eval_data=null",
            "stall_timeout=2s",
            "max_duration=3ba",
            "scheduler.t_warmup=1ba",
            name="slow",
        )
    assert ended == [2]


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


def test_a_suspended_run_goes_on_as_it_wakes(tmp_path: Path) -> None:
    """B6: SIGSTOP for longer than stall_timeout: the watchdog killed it as it woke. Here the watchdog is a child."""
    child = os.fork()
    if child == 0:
        watchdog = Progress(1.2, stacks=tmp_path, rank=0, note=lambda state: None, end=os._exit)
        watchdog._print = watchdog._write = lambda text: None  # type: ignore[method-assign]
        began = time.process_time()
        watchdog.watch()
        for beat in range(1, 11):  # a tenth of a second's work each, so that at the waking the watchdog looks first
            while time.process_time() - began < beat / 10:
                pass
            watchdog._beat(SimpleNamespace(timestamp=SimpleNamespace(batch=1)))  # type: ignore[arg-type]
        os._exit(42)
    time.sleep(0.5)
    os.kill(child, signal.SIGSTOP)
    time.sleep(2)
    os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


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


def test_the_watchdog_counts_its_looks_not_the_time_between_them(tmp_path: Path, monkeypatch) -> None:
    """B6: hours between two looks are one look; without progress enough of them end the run."""
    ended: list[int] = []
    watchdog = Progress(1800.0, stacks=tmp_path, rank=0, note=lambda state: None, end=ended.append)
    watchdog._print = watchdog._write = lambda text: None  # type: ignore[method-assign]
    looks: list[float] = []

    def wait(pause: float) -> bool:  # as if each look came hours after the one before
        looks.append(pause)
        monkeypatch.setattr(time, "monotonic", lambda: 1e6 * len(looks))
        if len(looks) == 300:
            watchdog._beat(SimpleNamespace(timestamp=SimpleNamespace(batch=1)))  # type: ignore[arg-type]
        return False

    monkeypatch.setattr(watchdog._over, "wait", wait)
    watchdog._watch()
    assert ended == [1] and sum(looks[300:]) == pytest.approx(1800, abs=15) and len(looks) > 600
