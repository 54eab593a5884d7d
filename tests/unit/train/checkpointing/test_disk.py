"""A disk that is full, a limit on files, a run folder that is removed: told once, and what was saved stays."""

import errno
import json
import os
import shutil
import threading
import types
from pathlib import Path

import pytest
import torch

from moe.common.errors import InputError
from moe.config import Every, parse_time
from moe.train.callbacks.saver import CheckpointSaver, SaveError
from moe.train.checkpointing.record import write_record
from moe.train.logs import RunLog, jsonl_writer, tensorboard_writer
from moe.train.stop import StopSignal
from tests.damage import largest_file
from tests.unit.train.checkpointing.test_run_folder import open_folder
from tests.unit.train.runs import rows, train

EVERY = Every(parse_time("1ba"), 1, 100)


def test_a_run_folder_that_is_removed_gets_the_next_checkpoint_and_the_run_says_so(
    tiny: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    from moe.train.callbacks.console import Console

    plain, settings = Console.batch_end, ["eval_data=null", "save_interval=4ba", "loggers.tensorboard={}"]
    settings += ["max_duration=12ba", "scheduler.t_warmup=1ba"]

    def removes(self, state, logger):
        plain(self, state, logger)
        if state.timestamp.batch == 6:
            for thread in threading.enumerate():  # step 4 may still be on its way to the disk
                if thread.name == "checkpoint":
                    thread.join()
            (tmp_path / "run").rename(tmp_path / "gone")  # at once: TensorBoard's thread writes while files are removed

    with monkeypatch.context() as patch:
        patch.setattr(Console, "batch_end", removes)
        code, folder = train(tiny, tmp_path, *settings)
    told = capsys.readouterr()
    assert code == 1 and "Traceback" not in told.err
    assert told.err.count("was removed while the run trained") == 1 and "Step 8 is saved there anew" in told.err
    assert json.loads((folder / "run.json").read_text())["state"] == "failed"
    assert train(tiny, tmp_path, *settings)[0] == 0
    assert "resumed from step 8" in capsys.readouterr().out and list(rows(folder, "train/loss")) == [9, 10, 11, 12]


def test_rows_that_a_full_disk_does_not_take_are_told_once_and_written_when_it_does(tmp_path: Path, capsys) -> None:
    path = tmp_path / "metrics.jsonl"
    log = RunLog([jsonl_writer(path, 0)], EVERY)
    with largest_file(100):
        for step in range(1, 6):
            log._send(step, {"train/loss": 1.0 / step})
    assert capsys.readouterr().out.count("warning: the logs cannot be written from step 3 on: File too large") == 1
    assert path.stat().st_size == 100
    log._send(6, {"train/loss": 0.1})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    assert capsys.readouterr().out == ""


def test_tensorboard_without_space_is_told_once_and_without_a_traceback(tmp_path: Path, capfd, monkeypatch) -> None:
    import torch.utils.tensorboard as board

    plain, before = board.SummaryWriter, {*threading.enumerate()}
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # put back afterwards
    monkeypatch.setattr(board, "SummaryWriter", lambda **settings: plain(**{**settings, "flush_secs": 0.1}))
    log = RunLog([tensorboard_writer(tmp_path / "board", 0)], EVERY)
    shutil.rmtree(tmp_path / "board")
    for step in range(1, 200):
        log._send(step, {"train/loss": 1.0})
    for writer in {*threading.enumerate()} - before:
        writer.join(15)
    log._send(200, {"train/loss": 1.0})
    log._send(201, {"train/loss": 1.0})
    told = capfd.readouterr()
    assert told.out.count("warning: the logs cannot be written") == 1 and "Traceback" not in told.err


@pytest.fixture
def saver(tmp_path: Path) -> CheckpointSaver:
    return CheckpointSaver(
        tmp_path / "run",
        every=EVERY,
        keep=3,
        keep_every=None,
        max_failed=5,
        stop=StopSignal(),
        manifest={"config": {}, "data": "d", "eos_id": 0, "vocab_size": 9},
        report=print,
        event=lambda *args, **more: None,
    )


def name_error(saver: CheckpointSaver) -> str:
    (saver.save_folder).mkdir(exist_ok=True)
    saver._write(1, {"model": {"w": torch.zeros(1000, 100)}}, {"tokens": 1})
    assert isinstance(saver._error, SaveError) and not list(saver.save_folder.glob("*step-*"))
    return str(saver._error)


def test_a_limit_on_file_sizes_is_not_called_a_full_disk(saver: CheckpointSaver) -> None:
    with largest_file(100_000):
        told = name_error(saver)
    assert "a file may not be so large here (it needs 400,000 bytes" in told
    assert "raise the limit of file sizes (ulimit -f)" in told and "free some space" not in told


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "the disk is full (it needs 400,000 bytes, "),
        (errno.EDQUOT, "the disk is full (it needs"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_the_disk_says_is_told_although_torch_hides_it(
    saver: CheckpointSaver, monkeypatch, number: int, told: str
) -> None:
    import builtins

    plain = builtins.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def write(self, content):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(
        "moe.train.checkpointing.checkpoints.open",
        lambda path, *args, **more: Full(plain(path, *args, **more)) if "state.pt" in str(path) else plain(path, *args),
        raising=False,
    )
    found = name_error(saver)
    assert told in found and ("free some space" in found) == (number != errno.EIO)


def test_a_run_on_a_full_disk_ends_with_a_warning_that_its_state_is_not_noted(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "run")
    before, said = (tmp_path / "run/run.json").read_text(), list[str]()
    with largest_file(50):
        folder.end("done", said.append)
    assert said == [f"warning: {tmp_path}/run/run.json cannot be written: File too large"]
    assert (tmp_path / "run/run.json").read_text() == before
    folder.lock.close()
    with largest_file(50), pytest.raises(InputError, match=r"cannot be used: File too large .*fix it or give another"):
        open_folder(tmp_path / "run")


def test_a_run_file_that_a_full_disk_does_not_take_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_record(tmp_path, {"id": "0123abcd"})
    with largest_file(100), pytest.raises(OSError, match="File too large"):
        write_record(tmp_path, {"id": "0123abcd", "more": "x" * 1000})
    assert json.loads(path.read_text()) == {"id": "0123abcd"}


def test_ranks_that_save_together_report_a_failure_at_once_and_raise_at_the_next_save(
    saver: CheckpointSaver, capsys
) -> None:
    """Each learns of it in a step of its own; one that raised there would leave the others waiting."""
    saver._writer, saver.max_failed = types.SimpleNamespace(), 2

    def fails(step: int) -> None:
        saver._error = SaveError(f"the checkpoint of step {step} was not written")
        saver._thread = threading.Thread(target=lambda: None)
        saver._thread.start()
        for _ in range(2):
            saver._report_failure()

    fails(1)
    line = "warning: the checkpoint of step 1 was not written, the next save tries again\n"
    assert capsys.readouterr().out == line and saver.failed == 0
    saver._report_failure(wait=True)
    assert capsys.readouterr().out == "" and saver.failed == 1 and saver.saved_step == -1
    fails(2)
    with pytest.raises(SaveError, match=r"step 2 .*2 saves in a row failed"):
        saver._report_failure(wait=True)
