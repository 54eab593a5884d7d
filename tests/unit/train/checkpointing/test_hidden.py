"""Starts that end half way, and checkpoints that are no part of the run any more, here and on s3."""

import json
import shutil
from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.common.s3 import RemoteError, RemoteFolder
from moe.train.checkpointing.checkpoints import folder_name, read_checkpoint
from moe.train.checkpointing.run_folder import RunFolder, open_run_folder
from tests.unit.train.checkpointing.test_checkpoints import flip_a_byte, steps, write

HERE = Path("runs/a")
KEEP = {"keep_every": None, "tokens_per_step": 1}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def begin(save_folder: str, said: list[str] | None = None, resume_from: str | None = None) -> RunFolder:
    say = ([] if said is None else said).append
    folder = open_run_folder(save_folder, run_name="a", autoresume=True, resume_from=resume_from, report=say)
    try:
        folder.fetch(say)
        folder.begin(say)
    finally:
        folder.let_go()
    return folder


def push(folder: RunFolder, step: int) -> None:
    assert folder.remote is not None
    folder.remote.push(write(HERE, step))


def test_the_logs_come_again_where_a_start_has_ended_before_it_had_them(bucket: str, monkeypatch) -> None:
    """It had written its own session by then, took the few rows here for the run's, and sent them over the others."""
    rows = b"".join(b'{"step": %d}\n' % step for step in range(100))
    first = begin(f"{bucket}/run")
    for name in ("metrics.jsonl", "events.jsonl", "alarms.jsonl"):
        (HERE / name).write_bytes(rows)
    push(first, 100)
    shutil.rmtree("runs")  # the machine is gone

    plain = RemoteFolder.download

    def fails(self: RemoteFolder, name: str, path: Path) -> None:
        if name == "metrics.jsonl":
            raise RemoteError("connection lost")
        plain(self, name, path)

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(RemoteFolder, "download", fails)
            folder = open_run_folder(f"{bucket}/run", run_name="a", autoresume=True, resume_from=None, report=print)
            folder.fetch(print)
            with pytest.raises(InputError, match="connection lost"):
                folder.begin(print)
        (HERE / "alarms.jsonl").write_bytes(b"a few")
        folder.end("failed", print, reason="connection lost")  # as the start ends that could not begin
        folder.let_go()
    last = begin(f"{bucket}/run")
    assert "logs_missing" not in json.loads((HERE / "run.json").read_text())
    push(last, 200)
    for name in ("metrics.jsonl", "events.jsonl", "alarms.jsonl"):
        assert (HERE / name).read_bytes() == RemoteFolder(f"{bucket}/run").read(name) == rows, name
    assert begin(f"{bucket}/run").found.logs_are_remote is False, "they are here now"


@pytest.mark.parametrize("both", [False, True])
def test_going_back_leaves_a_step_behind_that_was_caught_in_its_replacement(tmp_path: Path, both: bool) -> None:
    """It was brought back after the others had been left behind, and the next start resumed from it."""
    for step in (100, 200, 300):
        write(HERE, step)
    (HERE / "step-00000300").rename(HERE / ".replaced-step-00000300")
    if both:
        write(HERE, 300)
    begin(str(HERE), resume_from="step:100")
    assert steps(HERE) == [100] and not list(HERE.glob(".replaced-*"))
    assert begin(str(HERE)).checkpoint.step == 100
    assert [path.name[:-11] for path in sorted(HERE.glob("left-behind-*"))] == [
        "left-behind-step-00000200", "left-behind-step-00000300"
    ]  # fmt: skip


def test_a_broken_step_that_was_caught_in_its_replacement_is_set_aside_under_its_name() -> None:
    write(HERE, 100)
    flip_a_byte(write(HERE, 200) / "state.pt")
    (HERE / "step-00000200").rename(HERE / ".replaced-step-00000200")
    said: list[str] = []
    assert begin(str(HERE), said).checkpoint.step == 100
    assert steps(HERE) == [100] and (HERE / "set-aside-step-00000200").is_dir()
    assert any("set aside as set-aside-step-00000200" in line for line in said)


def test_a_step_caught_in_its_replacement_that_is_only_here_is_uploaded(bucket: str) -> None:
    begin(f"{bucket}/run")
    write(HERE, 100)
    (HERE / "step-00000100").rename(HERE / ".replaced-step-00000100")
    begin(f"{bucket}/run")
    assert RemoteFolder(f"{bucket}/run").read("step-00000100/manifest.json")


@pytest.mark.parametrize("why", ["left-behind", "set-aside"])
def test_a_step_that_is_saved_anew_on_s3_leaves_what_was_hidden_there_whole_and_is_removed_in_its_turn(
    bucket: str, why: str
) -> None:
    """The upload wrote over the hidden one's files, and its manifest kept retention from the folder for ever."""
    store = RemoteFolder(f"{bucket}/run")
    first = begin(f"{bucket}/run")
    for step in (100, 200, 300):
        push(first, step)
    old = {step: store.read(f"{folder_name(step)}/state.pt") for step in (200, 300)}
    for step in (200, 300):
        store.rename(f"{folder_name(step)}/manifest.json", f"{folder_name(step)}/{why}-manifest.json")
        shutil.rmtree(HERE / folder_name(step))
    run = begin(f"{bucket}/run")
    for step in (200, 300, 400):
        push(run, step)
    assert run.remote.retain(keep=1, **KEEP) == []
    kept = {name.split("/")[0] for name in store.list()} - {"run.json"}
    assert kept == {"step-00000400", f"{why}-step-00000200", f"{why}-step-00000300"}
    for step in (200, 300):
        place = Path("back", folder_name(step))
        for name in store.list(f"{why}-{folder_name(step)}/"):
            store.download(name, place / name.split("/", 1)[1])
        assert (place / "state.pt").read_bytes() == old[step] and read_checkpoint(place).step == step


def test_what_an_earlier_version_wrote_over_is_removed_with_what_it_was_written_over_by(bucket: str) -> None:
    store = RemoteFolder(f"{bucket}/run")
    run = begin(f"{bucket}/run")
    for step in (100, 200):
        push(run, step)
        store.write(f"{folder_name(step)}/left-behind-manifest.json", b"of the one that lay here")
    push(run, 200)  # once more, as after a failed save
    assert store.read("step-00000200/manifest.json") and not store.read("step-00000200/left-behind-manifest.json")
    assert run.remote.retain(keep=1, **KEEP) == [] and not store.list("step-00000100")


def test_a_move_that_broke_off_goes_on_and_a_second_hidden_one_has_a_place_of_its_own(bucket: str, monkeypatch) -> None:
    store = RemoteFolder(f"{bucket}/run")
    run = begin(f"{bucket}/run")
    plain = RemoteFolder.rename

    def breaks(self: RemoteFolder, name: str, new_name: str) -> None:
        if name.endswith("-manifest.json"):
            raise RemoteError("connection lost")
        plain(self, name, new_name)

    for _ in range(2):
        push(run, 100)
        run.remote.leave_behind(50)
        with monkeypatch.context() as patch, pytest.raises(RemoteError):
            patch.setattr(RemoteFolder, "rename", breaks)
            push(run, 100)
    push(run, 100)
    folders = {name.split("/")[0] for name in store.list() if name.endswith("/manifest.json")}
    assert folders == {"step-00000100", "left-behind-step-00000100", "left-behind-step-00000100-2"}
