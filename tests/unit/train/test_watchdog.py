"""A run that makes no progress is ended, with all stacks written; one that advances is left alone."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from moe.train.callbacks import progress
from moe.train.callbacks.progress import Progress
from moe.train.stop import EXIT_STOPPED as STOPPED
from tests.unit.train.runs import assert_same_run, train


def test_row09_a_token_count_that_does_not_advance_stops_the_run(
    small: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Stock asks the batch for `input_ids`, counts 0 without, and a duration in tokens never ends."""
    from moe.train import loaders

    monkeypatch.setattr(loaders, "_count_tokens", lambda batch: 0)
    assert train(small, tmp_path, "eval_data=null", "max_duration=2560tok")[0] == 1
    assert "the token count stays at 0, so max_duration would never be reached" in capsys.readouterr().err


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
