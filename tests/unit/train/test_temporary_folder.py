"""The run's temporary folder: its own, empty at each start, gone at each end that the process lives to see."""

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

import moe.train.stop as stop_module
import moe.train.temporary_folder as temporary_folder_module
from moe.common.ownership import begin
from moe.train.stop import TEMPORARY, StopSignal
from moe.train.temporary_folder import folder_for, temporary_folder
from tests.unit.train.runs import train


@pytest.fixture(autouse=True)
def _same_place_afterwards(monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())


def run_id(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["id"]


def test_a_copy_of_a_run_has_a_temporary_folder_of_its_own(tmp_path: Path, monkeypatch) -> None:
    """The copy has the same id; either would remove what the other one needs."""
    stop, same = StopSignal(), "0123abcd"
    with temporary_folder(tmp_path / "run", same, stop, leader=True):
        own = Path(tempfile.gettempdir())
        (own / "000000_barrier_filelock").touch()
        monkeypatch.setattr(tempfile, "tempdir", str(own.parent))  # as another process has it
        with temporary_folder(tmp_path / "copy", same, stop, leader=True):
            assert Path(tempfile.gettempdir()) != own and list(own.iterdir())
        assert list(own.iterdir())
    assert not own.exists()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert folder_for(tmp_path / "link", same) == folder_for(tmp_path / "run", same)


def test_machines_with_one_folder_for_temporary_files_have_each_their_own(tmp_path: Path, monkeypatch) -> None:
    """The leader of each cleared and made the same one: a start ended in FileExistsError, or lost its lock files."""
    found = set()
    for machine in ("node1", "node2"):
        named = os.uname_result((os.uname().sysname, machine, *os.uname()[2:]))
        monkeypatch.setattr(os, "uname", lambda named=named: named)
        for machines in (1, 2):
            monkeypatch.setattr(temporary_folder_module, "MACHINES", machines)
            found.add((machines, folder_for(tmp_path / "run", "0123abcd")))
    assert sorted(machines for machines, _ in found) == [1, 2, 2], "one machine may change its name"


@pytest.mark.parametrize("training", [False, True])
def test_an_end_at_once_leaves_no_temporary_folder(tmp_path: Path, monkeypatch, training: bool) -> None:
    """SIGTERM before training, and a second Ctrl+C."""
    codes: list[int] = []
    monkeypatch.setattr(stop_module.os, "_exit", codes.append)
    stop = StopSignal()
    stop.training = training
    with temporary_folder(tmp_path / "run", "0123abcd", stop, leader=True):
        own = Path(tempfile.gettempdir())
        assert own.is_dir()
        for _ in range(1 + training):
            stop._handle(signal.SIGINT, None)
        stop.step_ended()
        assert not own.exists() and codes == [130 if training else 75]


def test_a_rank_that_does_not_lead_leaves_the_folder_to_the_one_that_does(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(stop_module.os, "_exit", lambda code: None)
    leader, other = StopSignal(), StopSignal()
    with temporary_folder(tmp_path / "run", "0123abcd", leader, leader=True):
        own = Path(tempfile.gettempdir())
        monkeypatch.setattr(tempfile, "tempdir", str(own.parent))
        with temporary_folder(tmp_path / "run", "0123abcd", other, leader=False):
            other.leave(75)
        assert own.is_dir()


def test_row11_a_run_leaves_nothing_in_the_temporary_folder_and_clears_what_a_killed_one_left(
    tiny: Path, tmp_path: Path, monkeypatch
) -> None:
    place = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # pytest's own would be too long a name for sockets
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("TMPDIR", str(place))
    settings = ["eval_data=null", "max_duration=4ba", "scheduler.t_warmup=1ba", "num_workers=1"]
    assert train(tiny, tmp_path, *settings)[0] == 0
    assert list(place.iterdir()) == [] and tempfile.gettempdir() == str(place)
    left = Path(folder_for(tmp_path / "run", run_id(tmp_path / "run")))
    left.mkdir()
    begin(left, TEMPORARY)
    (left / "000000_barrier_filelock").touch()
    (place / "of-another").mkdir()
    assert train(tiny, tmp_path, "eval_data=null", "max_duration=6ba", "scheduler.t_warmup=1ba")[0] == 0
    assert [path.name for path in place.iterdir()] == ["of-another"]
    shutil.rmtree(place)


def test_a_temporary_folder_with_a_long_name_does_not_hang_the_loader_workers(
    tiny: Path, tmp_path: Path, monkeypatch
) -> None:
    """Stock waits for ever: a worker's socket does not fit into its address."""
    place = tmp_path / ("long" * 20)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("TMPDIR", str(place))
    settings = ["eval_data=null", "max_duration=2ba", "scheduler.t_warmup=1ba", "num_workers=1"]
    assert train(tiny, tmp_path, *settings)[0] == 0
    assert list(place.iterdir()) == []
    assert not list(Path("/tmp").glob(f"moe-{run_id(tmp_path / 'run')}-*"))
