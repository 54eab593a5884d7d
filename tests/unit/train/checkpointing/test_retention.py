"""Whose files go with an old or unfinished checkpoint: ours alone."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from moe.common.s3 import RemoteFolder
from moe.train.checkpointing.checkpoints import folder_name, read_checkpoint, write_checkpoint
from moe.train.checkpointing.remote import RemoteRun
from moe.train.checkpointing.retention import clear_unfinished, retain
from tests.unit.train.runs import SHORT, train

MANIFEST = {"config": {}, "data": "d", "eos_id": 0, "vocab_size": 9}
RULE = {"keep": 1, "keep_every": None, "tokens_per_step": 100}
KEEP_ONE = ["save_interval=2ba", "save_num_checkpoints_to_keep=1", "max_failed_saves=1"]


def write(folder: Path, step: int) -> Path:
    state = {"state": {"model": {"w": torch.full((10,), float(step))}}}
    more = {"tokenizer/tokenizer.json": b"{}"}
    return write_checkpoint(folder, step, state, MANIFEST | {"tokens": step * 100}, more)


def strew(folder: Path, kind: str) -> Path:
    """What a user may keep beside our files."""
    place = folder / "notes.txt"
    if kind == "in a folder":
        place = folder / "plots/loss.png"
        place.parent.mkdir(parents=True)
    if kind == "beside the tokenizer":
        place = folder / "tokenizer/notes.txt"
        place.parent.mkdir(exist_ok=True)
    if kind == "a link":
        place.symlink_to(folder / "nowhere")
    elif kind == "a linked folder":
        shutil.copytree(folder / "tokenizer", folder.parent / "mine")
        shutil.rmtree(folder / "tokenizer")
        place = folder / "tokenizer"
        place.symlink_to(folder.parent / "mine")
    else:
        place.write_text("mine")
    return place


@pytest.mark.parametrize("kind", ["a file", "in a folder", "beside the tokenizer", "a link", "a linked folder"])
def test_a_users_file_in_an_old_checkpoint_stays_with_it_and_is_told_once(
    small: Path, tmp_path: Path, monkeypatch, capsys, kind: str
) -> None:
    """A3: retention removed it with the checkpoint."""
    if kind == "a file":  # in a whole run
        from moe.train.callbacks.saver import CheckpointSaver

        plain = CheckpointSaver.batch_end

        def noted(self, state, logger):
            plain(self, state, logger)
            if self.saved_step == int(state.timestamp.batch) == 2:
                self.join()
                strew(tmp_path / "run/step-00000002", kind)

        monkeypatch.setattr(CheckpointSaver, "batch_end", noted)
        code, folder = train(small, tmp_path, *SHORT[:-1], *KEEP_ONE, "max_duration=10ba")
        told = [line for line in capsys.readouterr().out.splitlines() if "cannot be removed" in line]
        assert code == 0 and len(told) == 1 and "step-00000002: holds notes.txt, which was not made here" in told[0]
        assert sorted(path.name for path in folder.glob("step-*")) == ["step-00000002", "step-00000010"]
        assert not list(folder.glob(".removing-*"))
    else:
        folder = tmp_path
        write(folder, 2)
        place = strew(folder / "step-00000002", kind)
        write(folder, 4)
        for _ in range(2):
            (reason,) = retain(folder, **RULE)
            assert "was not made here" in reason and str(place.relative_to(folder / "step-00000002")) in reason
        assert place.is_symlink() or place.read_text() == "mine"
        if kind == "a linked folder":
            assert (folder / "mine/tokenizer.json").is_file(), "what a link leads to is nobody's to remove"
            return
        place.unlink()
        (place.parent.rmdir() if kind == "in a folder" else None)
        assert retain(folder, **RULE) == []
    assert read_checkpoint(folder / sorted(path.name for path in folder.glob("step-*"))[0]), "it stays whole"


def test_a_checkpoint_that_is_a_link_or_has_no_manifest_is_not_removed(tmp_path: Path) -> None:
    """A3: a step folder that was moved to another disk; one that nothing proves to be ours."""
    write(tmp_path / "other", 1).rename(tmp_path / "moved")
    (tmp_path / "step-00000001").symlink_to(tmp_path / "moved")
    (write(tmp_path, 2) / "manifest.json").unlink()
    write(tmp_path, 3)
    reasons = retain(tmp_path, **RULE)
    assert "step-00000001: is not a folder" in reasons[0] and "step-00000002: holds" in reasons[1] and len(reasons) == 2
    assert (tmp_path / "moved/state.pt").is_file() and (tmp_path / "step-00000002/state.pt").is_file()


@pytest.mark.parametrize("name", [".writing-", ".fetching-", ".removing-", ".replaced-"])
def test_what_is_left_of_an_unfinished_checkpoint_goes_unless_it_holds_a_users_file(tmp_path: Path, name: str) -> None:
    """A3: folders of these names were removed with whatever was in them."""
    for step, mine in ((1, True), (2, False)):
        left = write(tmp_path, step).rename(tmp_path / f"{name}{folder_name(step)}")
        if mine:
            strew(left, "a file")
    write(tmp_path, 1), write(tmp_path, 2)
    said: list[str] = []
    clear_unfinished(tmp_path, said.append)
    said += retain(tmp_path, keep=-1, keep_every=None, tokens_per_step=1)
    assert [path.read_text() for path in tmp_path.glob(".*/notes.txt")] + [
        path.read_text() for path in tmp_path.glob("set-aside-*/notes.txt")
    ] == ["mine"]
    assert sum("notes.txt, which was not made here" in line for line in said) == 1
    assert not list(tmp_path.glob("*step-00000002-*")) and not (tmp_path / f"{name}step-00000002").exists()
    assert [read_checkpoint(tmp_path / folder_name(step)).step for step in (1, 2)] == [1, 2]


def test_a_replaced_checkpoint_with_a_users_file_does_not_come_back(tmp_path: Path) -> None:
    """A3: the step is saved anew, then removed by retention; a start would have found the old one under its name."""
    strew(write(tmp_path, 1), "a file")
    write(tmp_path, 1), write(tmp_path, 2)
    (reason,) = retain(tmp_path, **RULE)
    assert "holds notes.txt" in reason and "it stays as set-aside-step-00000001" in reason
    clear_unfinished(tmp_path, print)
    assert sorted(path.name for path in tmp_path.glob("*step*")) == ["set-aside-step-00000001", "step-00000002"]
    assert (tmp_path / "set-aside-step-00000001/notes.txt").read_text() == "mine"


def test_a_write_that_was_killed_is_known_by_its_mark(tmp_path: Path, monkeypatch) -> None:
    """A3: before there is a manifest, the mark says what is ours; a save finds a name though one is taken."""
    import moe.train.checkpointing.checkpoints as checkpoints

    for step, killed_at in ((3, "manifest"), (4, "state")):
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(checkpoints.ownership, "remove_files", lambda folder, names: None)  # a kill removes nothing
            dump, save = json.dump, torch.save

            def die(*args, **more):
                raise SystemExit

            patch.setattr(checkpoints.json, "dump", die if killed_at == "manifest" else dump)
            patch.setattr(checkpoints.torch, "save", die if killed_at == "state" else save)
            write(tmp_path, step)
    strew(tmp_path / ".writing-step-00000004", "a file")
    assert read_checkpoint(write(tmp_path, 4)).step == 4, "its usual name is taken by what was left"
    said: list[str] = []
    clear_unfinished(tmp_path, said.append)
    assert [path.name for path in tmp_path.glob(".writing-*")] == [".writing-step-00000004"]
    assert len(said) == 2 and "step-00000003: was being written when the run was stopped; removed the part" in said
    assert (tmp_path / ".writing-step-00000004/notes.txt").read_text() == "mine"


def test_a_disk_that_refuses_a_removal_refuses_no_start(tmp_path: Path, monkeypatch) -> None:
    """B5: what an interrupted write left could not be removed (EBUSY), and no start was possible."""
    (tmp_path / ".writing-step-00000005").mkdir()
    (tmp_path / ".writing-step-00000005/state.pt").write_bytes(b"half")
    plain = Path.unlink

    def busy(self: Path, missing_ok: bool = False) -> None:
        if self.name == "state.pt":
            raise OSError(16, "Device or resource busy", str(self))
        plain(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", busy)
    said: list[str] = []
    clear_unfinished(tmp_path, said.append)
    assert len(said) == 1 and "Device or resource busy" in said[0] and "the part stays" in said[0]


def test_whatever_housekeeping_meets_the_save_was_one(small: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """B5: an error that is no OSError counted as a failed save."""
    import moe.train.callbacks.saver as saver

    def stumbles(*args, **rule):
        raise ValueError("an odd name")

    monkeypatch.setattr(saver, "retain", stumbles)
    code, _ = train(small, tmp_path, *SHORT[:-1], *KEEP_ONE, "max_duration=4ba")
    out = capsys.readouterr().out
    assert code == 0 and "an odd name" in out and "was not written" not in out


def test_files_of_others_on_a_bucket_stay_and_what_broke_off_is_known(tmp_path: Path, bucket: str) -> None:
    """A3: on s3 every key below an old step was removed."""
    remote = RemoteRun(f"{bucket}/run", tmp_path, report=print)
    for step in (1, 2, 3, 4, 5):
        remote.upload(write(tmp_path, step))
    remote.store.write("step-00000001/notes.txt", b"mine")
    remote.store.delete(["step-00000002/manifest.json", "step-00000002/state.pt"])  # a removal that broke off
    remote.store.delete(["step-00000003/.made.json"])  # as earlier versions uploaded
    remote.store.write("step-00000004/tokenizer/mine.txt", b"mine")
    remote.store.delete(["step-00000004/manifest.json"])
    reasons = remote.retain(**RULE)
    assert len(reasons) == 2 and "step-00000001/notes.txt was not made here" in reasons[0]
    assert "step-00000004/tokenizer/mine.txt was not made here" in reasons[1]
    assert {name.split("/")[0] for name in remote.store.list("step-")} == {f"step-0000000{step}" for step in (1, 4, 5)}
    assert remote.steps() == [1, 5]


def test_only_what_the_manifest_lists_travels_to_a_bucket_and_back(tmp_path: Path, bucket: str) -> None:
    """A3: a user's file was copied both ways, and then hindered no removal."""
    remote = RemoteRun(f"{bucket}/run", tmp_path / "there", report=print)
    strew(write(tmp_path / "here", 7), "a file")
    remote.upload(tmp_path / "here/step-00000007")
    assert "step-00000007/notes.txt" not in RemoteFolder(f"{bucket}/run").list()
    remote.store.write("step-00000007/plots/a.png", b"mine")
    found = remote.fetch(7)
    names = sorted(path.name for path in found.path.rglob("*") if path.is_file())
    assert names == ["manifest.json", "state.pt", "tokenizer.json"] and read_checkpoint(found.path).step == 7
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["step-00000007"]


def test_a_folder_with_the_name_of_a_runs_temporary_one_is_moved_not_emptied(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    """A3: it was emptied for its name."""
    from moe.train.stop import StopSignal
    from moe.train.temporary_folder import folder_for, temporary_folder

    place = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # pytest's own would be too long a name for sockets
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    own = Path(folder_for(tmp_path / "run", "0123abcd"))
    own.mkdir()
    (own / "thesis.tex").write_text("mine")
    with temporary_folder(tmp_path / "run", "0123abcd", StopSignal(), leader=True):
        assert tempfile.gettempdir() == str(own)
    assert not own.exists() and (place / f"{own.name}-left-1/thesis.tex").read_text() == "mine"
    shutil.rmtree(place)
    assert f"stays as {own}-left-1" in capsys.readouterr().out


def test_a_folder_with_the_name_of_a_tokenizer_in_the_making_stays(tmp_path: Path) -> None:
    """A3: a run folder's `.tokenizer.tmp` was removed for its name; a disk that is full leaves none of ours."""
    from moe.data.text.kept_tokenizer import KeptTokenizer, write_kept

    strew(tmp_path / ".tokenizer.tmp", "in a folder")
    files = {"tokenizer.json": b"{}", "more.json": b"{}"}
    assert write_kept(KeptTokenizer("f", files), tmp_path / "tokenizer")
    with pytest.raises(TypeError):
        write_kept(KeptTokenizer("f", {**files, "z.json": None}), tmp_path / "other")  # type: ignore[dict-item]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tokenizer.tmp", "tokenizer"]
    assert (tmp_path / ".tokenizer.tmp/plots/loss.png").read_text() == "mine"
