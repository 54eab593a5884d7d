"""What a run that was stopped does next, in this process. rowNN: rows of the table in docs/resume.md.

Runs are 40 steps with dropout; an epoch has 24, so that they cross an epoch's end.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from moe.config import load_config
from moe.train.callbacks.progress import Progress
from moe.train.spikes import WINDOW, SpikeCounter
from moe.train.stop import StopSignal
from tests.unit.train.runs import assert_same_run, die_after, rows, train, weights

EPOCH = 24
STOPPED = 75


@pytest.fixture(scope="module")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data, as its first samples only: an epoch of EPOCH steps."""
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    index = folder / "data/train/index.json"
    content = json.loads(index.read_text())
    content["shards"][0]["samples"] = EPOCH * 8 + 3
    index.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def whole(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    patch = pytest.MonkeyPatch()
    patch.setattr(StopSignal, "install", lambda self: None)
    code, folder = train(small, tmp_path_factory.mktemp("whole"), f"save_interval={EPOCH}ba", "eval_data=null")
    patch.undo()
    assert code == 0
    return folder


def die(small: Path, tmp_path: Path, step: int, *overrides: str) -> Path:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_after(step, patch)
        train(small, tmp_path, "eval_data=null", *overrides)
    return tmp_path / "run"


@pytest.mark.parametrize("workers", [0, 2])
def test_row03_after_a_kill_in_mid_epoch_dropout_and_order_are_those_of_the_whole_run(
    small: Path, tmp_path: Path, whole: Path, workers: int
) -> None:
    """Stock restores the random state at epochs' starts only: with dropout every later step differs."""
    settings = ["eval_data=null", "save_interval=5ba", f"num_workers={workers}"]
    for step in (12, 33):  # in the first epoch and in the second
        die(small, tmp_path, step, *settings)
    code, folder = train(small, tmp_path, *settings)
    assert code == 0
    assert_same_run(folder, whole)


def test_row04_a_checkpoint_of_an_epochs_last_batch_does_not_replay_the_epoch(
    small: Path, tmp_path: Path, whole: Path, capsys
) -> None:
    """Stock saves the dataset's own epoch, which is still the old one there."""
    folder = die(small, tmp_path, EPOCH + 2, f"save_interval={EPOCH}ba")
    manifest = json.loads((folder / f"step-000000{EPOCH}/manifest.json").read_text())
    assert (manifest["epoch"], manifest["sample_in_epoch"]) == (0, EPOCH * 8)
    assert train(small, tmp_path, "eval_data=null")[0] == 0
    assert f"resumed from step {EPOCH}" in capsys.readouterr().out
    assert_same_run(folder, whole)


def test_row04_nor_does_one_that_was_written_after_the_epochs_end(small: Path, tmp_path: Path, monkeypatch) -> None:
    """The clock then says the next epoch, and the dataset, where the position comes from, still the old one."""
    import moe.train.callbacks.saver as saver

    plain, failed = saver.write_checkpoint, []

    def fails_once(folder, step, *args):
        if step == EPOCH and not failed:
            failed.append(step)
            raise OSError(5, "Input/output error")
        return plain(folder, step, *args)

    settings = ["eval_data=null", "scheduler.name=constant_with_warmup", "scheduler.t_warmup=2ba"]
    with monkeypatch.context() as patch:
        patch.setattr(saver, "write_checkpoint", fails_once)
        _, folder = train(small, tmp_path, *settings, f"max_duration={EPOCH}ba")
    manifest = json.loads((folder / f"step-000000{EPOCH}/manifest.json").read_text())
    assert failed and (manifest["epoch"], manifest["sample_in_epoch"]) == (1, 0)
    assert train(small, tmp_path, *settings, "max_duration=40ba")[0] == 0
    uncut = train(small, tmp_path, *settings, "max_duration=40ba", name="uncut")[1]
    assert_same_run(folder, uncut)


def test_row05_retention_counts_checkpoints_of_earlier_starts(small: Path, tmp_path: Path) -> None:
    """Stock keeps N per start."""
    settings = ["save_interval=2ba", "save_num_checkpoints_to_keep=2", "keep_every=10ba"]
    for step in (5, 9, 17):
        folder = die(small, tmp_path, step, *settings)
        newest = (step - 1) // 2 * 2
        kept = {int(path.name[5:]) for path in folder.glob("step-*")}
        # the write of the last save may not have come to its end when the run died
        assert kept - {10} <= {newest - 4, newest - 2, newest, newest + 1} and len(kept - {10}) <= 3
    assert train(small, tmp_path, "eval_data=null", *settings)[0] == 0
    assert sorted(int(path.name[5:]) for path in folder.glob("step-*")) == [10, 20, 30, 38, 40]


def test_resuming_late_in_an_epoch_reads_no_more_than_early(small: Path, tmp_path: Path, monkeypatch) -> None:
    from moe.data import TokenDataset

    read, plain = [], TokenDataset.get_item
    monkeypatch.setattr(TokenDataset, "get_item", lambda self, *args: (read.append(args), plain(self, *args))[1])
    assert train(small, tmp_path, "eval_data=null", "max_duration=5632tok")[0] == 0
    assert len(read) == 22 * 8
    read.clear()
    assert train(small, tmp_path, "eval_data=null", "max_duration=5888tok")[0] == 0
    assert len(read) == 8, "only the samples of the one step that was missing"


def test_row09_a_token_count_that_does_not_advance_stops_the_run(
    small: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Stock asks the batch for `input_ids`, counts 0 without, and a duration in tokens never ends."""
    from moe import build

    monkeypatch.setattr(build, "_count_tokens", lambda batch: 0)
    assert train(small, tmp_path, "eval_data=null", "max_duration=2560tok")[0] == 1
    assert "the token count stays at 0, so max_duration would never be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("warmup", "fault"),
    [
        ("20480tok", r"scheduler.t_warmup \(20480tok\) is not shorter than max_duration \(10240tok\)"),
        ("4ba", r"scheduler.t_warmup \(4ba\) is not in the unit of max_duration \(10240tok\)"),
    ],
)
def test_row12_a_warmup_too_long_or_in_another_unit_is_refused_by_name(small: Path, warmup: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        load_config(small / "tiny.yaml", [f"scheduler.t_warmup={warmup}"])


def test_row13_wandb_keeps_its_run_and_tensorboard_its_steps_over_a_resume(
    small: Path, tmp_path: Path, monkeypatch
) -> None:
    """Stock starts a new W&B run at each start, and TensorBoard draws replayed steps twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from wandb.sdk.wandb_run import Run

    monkeypatch.setenv("WANDB_MODE", "offline")
    logged_there, plain = [], Run.log

    def log(self, row, step):
        logged_there.append((self.id, step))
        plain(self, row, step=step)

    monkeypatch.setattr(Run, "log", log)
    settings = ["loggers.tensorboard={}", "loggers.wandb={project: test, mode: offline}", "save_interval=5ba"]
    settings.append("max_duration=12ba")
    settings.append("scheduler.t_warmup=1ba")
    folder = die(small, tmp_path, 8, *settings)
    first = json.loads((folder / "run.json").read_text())["wandb_id"]
    assert train(small, tmp_path, "eval_data=null", *settings)[0] == 0
    assert json.loads((folder / "run.json").read_text())["wandb_id"] == first
    logged = rows(folder, "train/loss")
    assert list(logged) == list(range(1, 13))
    board = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("train/loss")
    assert [event.step for event in board] == list(range(1, 13))
    assert [event.value for event in board] == pytest.approx(list(logged.values()))
    # W&B refuses a step that it has already: what the first start had logged beyond the checkpoint is not doubled
    assert logged_there == [(first, step) for step in [*range(1, 9), *range(6, 13)]]
    assert len(list(folder.glob(f"wandb/offline-run-*-{first}"))) == 2


def test_row14_the_rate_is_the_one_applied_and_both_norms_are_logged(small: Path, tmp_path: Path, monkeypatch) -> None:
    """Stock logs the rate one batch late and the norm after clipping only."""
    from moe.optim import Muon

    applied, plain = [], Muon.step
    monkeypatch.setattr(
        Muon, "step", lambda self, *a, **k: (applied.append(self.param_groups[0]["lr"]), plain(self, *a, **k))[1]
    )
    _, folder = train(
        small, tmp_path, "eval_data=null", "max_duration=8ba", "scheduler.t_warmup=4ba", "gradient_clip_norm=0.5"
    )
    assert list(rows(folder, "optim/lr/muon").values()) == applied and applied[0] > 0
    norm, clipped = rows(folder, "optim/grad_norm"), rows(folder, "optim/grad_norm_clipped")
    assert max(norm.values()) > 0.5 and all(clipped[step] == min(norm[step], 0.5) for step in norm)


def test_a_step_that_does_not_end_is_abandoned_and_replayed(
    small: Path, tmp_path: Path, whole: Path, monkeypatch, capsys
) -> None:
    from moe.train.model import MoEModel

    signals, plain, calls = [], MoEModel.forward, []
    monkeypatch.setattr(StopSignal, "install", lambda self: signals.append(self))

    def slow(self, batch):
        calls.append(None)
        if len(calls) == 4 * 6 + 2:  # the second of step 7's four microbatches takes longer than PATIENCE
            signals[-1].received, signals[-1].since = signal.SIGTERM, time.monotonic() - 16
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

    ended = threading.Event()
    monkeypatch.setattr(stop_module, "LAST_RESORT", 0.05)
    monkeypatch.setattr(stop_module.os, "_exit", lambda code: ended.set() if code == STOPPED else None)
    stop = StopSignal()
    stop.training = True
    stop._handle(signal.SIGTERM, None)
    assert ended.wait(5)
    ended.clear()
    stop = StopSignal()
    stop.training = True
    stop._handle(signal.SIGTERM, None)
    stop.step_ended()  # it saves now, which nothing may cut short
    assert not ended.wait(0.3)


def test_the_time_limit_saves_and_exits_75(small: Path, tmp_path: Path, whole: Path, monkeypatch, capsys) -> None:
    from moe.train.callbacks.console import Console

    plain = Console.batch_end
    with monkeypatch.context() as patch:
        patch.setattr(Console, "batch_end", lambda self, *args: (time.sleep(0.3), plain(self, *args))[1])
        code, folder = train(small, tmp_path, "eval_data=null", "time_limit=2s")
    assert "stopped by time_limit; saved is step " in capsys.readouterr().out
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


def test_the_watchdog_ends_the_run_where_nothing_can_be_written(tmp_path: Path) -> None:
    """A disk that is full or gone is what a run may hang on."""
    ended = threading.Event()
    (tmp_path / "stacks").touch()

    def note(state: str) -> None:
        raise OSError(28, "No space left on device")

    Progress(0.2, stacks=tmp_path / "stacks", rank=0, note=note, end=lambda code: ended.set()).watch()
    assert ended.wait(10)


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), OSError(28, "No space left"), BrokenPipeError()])
def test_a_terminal_that_goes_away_does_not_end_a_run(monkeypatch, capsys, fault: OSError) -> None:
    from moe.units import complain, say

    class Gone:
        def write(self, text: str) -> None:
            raise fault

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
        slow = lambda self, state, logger: (time.sleep(5 * (state.timestamp.batch == 2)), plain(self, state, logger))  # noqa: E731
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


def test_loss_spikes_are_counted_and_the_window_survives_a_resume() -> None:
    torch.manual_seed(0)
    losses = 3 + 0.1 * torch.randn(400, dtype=torch.float64)
    losses[50] = 9.0  # before the window is full nothing is a spike
    losses[300], losses[310], losses[320], losses[330] = 3.9, float("nan"), float("inf"), 3.2
    whole = SpikeCounter()
    for loss in losses:
        whole.add(loss)
    mean, deviation = losses[172:300].mean(), losses[172:300].std()
    assert losses[300] > mean + 6 * deviation and losses[330] < mean + 6 * deviation
    assert whole.state["spikes"].item() == 1 and whole.state["seen"].item() == 398
    cut = SpikeCounter()
    for loss in losses[: WINDOW + 100]:
        cut.add(loss)
    resumed = SpikeCounter()
    resumed.load_state_dict({name: value.clone() for name, value in cut.state_dict().items()})
    for loss in losses[WINDOW + 100 :]:
        resumed.add(loss)
    assert all(torch.equal(resumed.state[name], value) for name, value in whole.state.items())


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


def test_weights_are_compared_in_full(whole: Path) -> None:
    """What `assert_same_run` looks at: every tensor of the model, none of them constant over the run."""
    found = weights(whole)
    assert len(found) > 20 and all(value.float().std() > 0 for value in found.values() if value.numel() > 1)
