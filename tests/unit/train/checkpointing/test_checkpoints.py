import json
import pickle
from pathlib import Path

import pytest
import torch

from moe.config import Time
from moe.train.checkpointing.checkpoints import (
    CheckpointError,
    find_named,
    folder_name,
    load_state,
    newest_checkpoint,
    read_checkpoint,
    step_folders,
    write_checkpoint,
)
from moe.train.checkpointing.retention import clear_unfinished, retain

MANIFEST = {"config": {}, "data": "d", "eos_id": 0, "vocab_size": 9}


def write(folder: Path, step: int) -> Path:
    state = {"state": {"model": {"w": torch.full((100,), float(step))}}}
    return write_checkpoint(folder, step, state, MANIFEST | {"tokens": step * 100})


def steps(folder: Path) -> list[int]:
    return [int(p.name[5:]) for p in step_folders(folder)]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_written_checkpoint_verifies_and_reads_back(tmp_path: Path) -> None:
    found = read_checkpoint(write(tmp_path, 7))
    assert (found.step, found.tokens) == (7, 700)
    assert load_state(found.state_file)["state"]["model"]["w"][0] == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == [".saved", "step-00000007"]


def test_row02_a_write_that_fails_leaves_nothing_behind_and_older_ones_untouched(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, 1)

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".saved", "step-00000001"]
    assert read_checkpoint(tmp_path / folder_name(1)).step == 1


def test_row02_the_newest_that_verifies_is_used_and_broken_ones_are_named_and_set_aside(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    flip_a_byte(tmp_path / folder_name(4) / "state.pt")
    (tmp_path / folder_name(3) / "manifest.json").unlink()
    from moe.train.checkpointing.run_folder import open_run_folder

    found, errors = newest_checkpoint(step_folders(tmp_path))
    assert found is not None and found.step == 2 and steps(tmp_path) == [1, 2, 3, 4], "looking moves nothing"
    assert "xxh64 differs" in str(errors[0]) and "step-00000004" in str(errors[0]) and "manifest.json" in str(errors[1])
    said: list[str] = []
    folder = open_run_folder(str(tmp_path), run_name="a", autoresume=True, resume_from=None, report=said.append)
    assert said == [] and steps(tmp_path) == [1, 2, 3, 4]
    folder.begin(said.append)
    assert "xxh64 differs" in said[0] and "using step-00000002" in said[0] and "manifest.json" in said[1]
    assert "left to you to look at or delete: no start reads them" in said[0]
    assert sorted(p.name for p in tmp_path.glob("set-aside-*")) == [
        "set-aside-step-00000003",
        "set-aside-step-00000004",
    ]
    assert steps(tmp_path) == [1, 2]


def test_a_truncated_state_is_told_with_both_sizes(tmp_path: Path) -> None:
    path = write(tmp_path, 1) / "state.pt"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=f"has {size - 10} bytes, its manifest says {size}"):
        read_checkpoint(path.parent)


def test_no_checkpoint_is_none_but_only_broken_ones_are_an_error(tmp_path: Path) -> None:
    from moe.train.checkpointing.run_folder import open_run_folder

    assert newest_checkpoint(step_folders(tmp_path)) == (None, [])
    flip_a_byte(write(tmp_path, 1) / "state.pt")
    with pytest.raises(CheckpointError, match="none verifies"):
        open_run_folder(str(tmp_path), run_name="a", autoresume=True, resume_from=None, report=print)
    assert steps(tmp_path) == [1]  # nothing was moved


def test_what_an_interrupted_write_left_is_reported_and_removed(tmp_path: Path) -> None:
    (tmp_path / ".writing-step-00000005").mkdir()
    (tmp_path / ".writing-step-00000005" / "state.pt").write_bytes(b"half")
    write(tmp_path, 6).rename(tmp_path / ".replaced-step-00000006")
    said: list[str] = []
    clear_unfinished(tmp_path, said.append)
    assert steps(tmp_path) == [6] and len(said) == 2
    assert [p.name for p in tmp_path.glob(".*")] == [".saved"]


def test_retention_keeps_the_newest_and_the_pinned_whoever_wrote_them(tmp_path: Path) -> None:
    for step in (10, 20, 25, 30, 40, 50, 60):
        write(tmp_path, step)
        retain(tmp_path, keep=2, keep_every=Time(2500, "tok"), tokens_per_step=100)
    assert steps(tmp_path) == [25, 50, 60]


@pytest.mark.parametrize(("keep", "left"), [(3, [1, 2]), (2, [1, 2]), (1, [2]), (-1, [1, 2])])
def test_retention_with_fewer_checkpoints_than_it_keeps_removes_none(tmp_path: Path, keep: int, left: list) -> None:
    write(tmp_path, 1), write(tmp_path, 2)
    retain(tmp_path, keep=keep, keep_every=None, tokens_per_step=100)
    assert steps(tmp_path) == left


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (exec, (f"open({str(self.marker)!r}, 'w').close()",))


def test_row07_a_checkpoint_that_carries_code_is_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"state": {"model": Payload(tmp_path / "ran")}}, path)
    with pytest.raises(CheckpointError, match=r"state\.pt: refused"):
        load_state(path)
    assert not (tmp_path / "ran").exists()
    with open(path, "rb") as file:  # the payload is a live one: the stock call runs it
        torch.load(file, weights_only=False)
    assert (tmp_path / "ran").exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_named_checkpoints_are_found_by_folder_file_or_run_and_errors_are_told(tmp_path: Path) -> None:
    write(tmp_path, 1), write(tmp_path, 2)
    assert find_named(str(tmp_path)).step == 2
    assert find_named(str(tmp_path / folder_name(1))).step == 1
    assert find_named(str(tmp_path / folder_name(1) / "state.pt")).step == 1
    with pytest.raises(CheckpointError, match="is not there; give a run folder"):
        find_named(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds none"):
        find_named(str(tmp_path / "empty"))
    (tmp_path / folder_name(2) / "manifest.json").write_text(json.dumps({"step": 2}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        find_named(str(tmp_path / folder_name(2)))


@pytest.mark.parametrize("name", [".", "state.pt", "../step-00000002/."])
def test_from_within_its_folder_a_checkpoint_knows_its_run(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(write(tmp_path, 2))
    found = find_named(name)
    assert found.path.name == "step-00000002" and found.path.parent.resolve() == tmp_path


def test_a_run_named_for_its_newest_is_no_older_one_without_a_word(tmp_path: Path) -> None:
    """An export of a run whose newest was damaged gave the weights of the step before, and said nothing."""
    older = write(tmp_path, 1)
    flip_a_byte(write(tmp_path, 2) / "state.pt")
    with pytest.raises(CheckpointError) as error:
        find_named(str(tmp_path))
    assert "step-00000002" in str(error.value) and str(error.value).endswith(
        f"The newest that verifies is {older}: give that, or restore the newer"
    )
    assert find_named(str(older)).step == 1


@pytest.mark.parametrize(
    "broken", ['{"files": {}, ' + '"step": 1}', '{"files": []}', '{"files": {"state.pt": {}}}', "[1]", "{", ""]
)
def test_a_damaged_manifest_never_verifies(tmp_path: Path, broken: str) -> None:
    folder = write(tmp_path, 1)
    (folder / "manifest.json").write_text(broken)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_checkpoint(folder)
