"""What is refused changes nothing: not the run folder, not its place, not the bucket."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from moe.cli.train import main
from moe.common.s3 import RemoteFolder
from tests.tiny import in_time, tiny_config, write_config

SETTINGS = ["max_duration=4ba", "scheduler.t_warmup=1ba", "save_interval=2ba", "eval_data=null"]
OF_A_RUN = [
    ["run_name=other"],
    ["seed=99"],
    ["model.d_model=64"],
    ["optimizer.name=adamw"],
    ["global_train_batch_size=4", "max_duration=8ba"],
    ["resume_from=step:3"],
    ["autoresume=false"],
    ["train_data.local=nowhere"],
    ["max_duration=8ba", "seed=99", "loggers.tensorboard={}"],
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def start(tiny: Path, save_folder: str, *overrides: str) -> int:
    path = write_config(Path("c.yaml"), tiny_config(tiny))
    return main([str(path), f"save_folder={save_folder}", *SETTINGS, *overrides])


def snapshot(folder: Path) -> dict[str, tuple]:
    """Every file and folder below: its bytes, its time and its inode."""
    return {
        str(path): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns, path.stat().st_ino)
        for path in sorted(folder.rglob("*"))
        if path.name != "c.yaml"
    }


def bucket_snapshot(url: str) -> dict[str, bytes | None]:
    store = RemoteFolder(url)
    return {name: store.read(name) for name in store.list()}


def test_a_refused_start_leaves_a_finished_run_as_it_is(tiny: Path, tmp_path: Path, capsys) -> None:
    """A16: a start with seed=99 on a finished run made it one that is running, later listed as interrupted."""
    place = tmp_path / "place"
    assert start(tiny, f"{place}/run") == 0
    before = snapshot(place)
    assert json.loads((place / "run/run.json").read_text())["state"] == "done" and len(before) > 5
    for overrides in OF_A_RUN:
        capsys.readouterr()
        assert start(tiny, f"{place}/run", *overrides) == 2, overrides
        err = capsys.readouterr().err
        assert err.count("error:") == 1 and "Traceback" not in err, overrides
        assert snapshot(place) == before, overrides
    assert start(tiny, f"{place}/run") == 0, "and it can go on"


def test_a_refused_start_from_another_machine_leaves_the_bucket_to_the_run_that_trains(
    tiny: Path, tmp_path: Path, bucket: str, monkeypatch, capsys
) -> None:
    """A17: a start with seed=99 from another machine took the session, and the run that trained ended."""
    from moe.train.callbacks.console import Console

    plain, told, other = Console.batch_end, [], tmp_path / "other machine"
    other.mkdir()

    def meanwhile(self, state, logger):
        plain(self, state, logger)
        if int(state.timestamp.batch) != 3 or told:
            return
        told.append(None)
        while "step-00000002/manifest.json" not in RemoteFolder(f"{bucket}/run").list("step-"):
            time.sleep(0.01)  # this process is about to stand in another folder
        time.sleep(0.2)
        before = bucket_snapshot(f"{bucket}/run")
        with monkeypatch.context() as patch:
            patch.chdir(other)
            patch.setattr(Console, "batch_end", plain)
            for overrides in (["seed=99"], ["resume_from=step:9"], ["run_name=b"], ["max_duration=1ba"]):
                overrides = [*overrides, "scheduler.name=constant_with_warmup", "scheduler.t_warmup=0ba"]
                told.append(start(tiny, f"{bucket}/run", *overrides))
                assert [path.name for path in other.iterdir()] == ["c.yaml"], overrides
        assert bucket_snapshot(f"{bucket}/run") == before

    monkeypatch.setattr(Console, "batch_end", meanwhile)
    assert start(tiny, f"{bucket}/run") == 0, "the run that trains goes on to its end"
    assert told == [None, 2, 2, 2, 0], "a shorter max_duration has nothing to do: it takes the run from nobody"
    assert json.loads(RemoteFolder(f"{bucket}/run").read("run.json") or b"")["state"] == "done"


def test_a_refused_start_with_the_runs_checkpoint_to_fetch_fetches_none(tiny: Path, bucket: str) -> None:
    """A17: nor does it bring a checkpoint that it will not use, or set one aside there."""
    assert start(tiny, f"{bucket}/run") == 0
    shutil.rmtree("runs")
    before = bucket_snapshot(f"{bucket}/run")
    for overrides in OF_A_RUN:
        assert start(tiny, f"{bucket}/run", *overrides) == 2, overrides
        assert not Path("runs").exists() and bucket_snapshot(f"{bucket}/run") == before, overrides


@pytest.mark.parametrize(
    "overrides",
    [
        ["load_path=nowhere"],
        ["load_path=somewhere"],
        ["resume_from=step:5"],
        ["train_data.local=nowhere"],
        ["loggers.wandb={mode: online, project: x}"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_a_new_run_that_is_refused_leaves_no_phantom(tiny: Path, tmp_path: Path, monkeypatch, overrides) -> None:
    """D3: a start refused for a bad load_path left a run that `moe runs` lists."""
    import wandb

    def refuses(**settings: object) -> None:
        assert Path(str(settings["dir"])).is_dir(), "W&B is given a folder that is there"
        (Path(str(settings["dir"])) / "wandb").mkdir()
        raise wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refuses)
    (tmp_path / "somewhere/step-00000001").mkdir(parents=True)
    (tmp_path / "beside").mkdir()
    before = snapshot(tmp_path / "beside")
    assert start(tiny, str(tmp_path / "beside/runs/new"), *overrides) == 2
    assert snapshot(tmp_path / "beside") == before
    assert not Path("runs").exists()


def test_a_bucket_that_takes_no_writes_leaves_no_phantom_here(tiny: Path, bucket: str, monkeypatch, capsys) -> None:
    """D3: the record on the bucket comes first; without it there is none here."""
    from moe.common.s3 import RemoteError

    def refuses(self: RemoteFolder, *args: object) -> None:
        raise RemoteError(f"{self.url}: cannot write run.json: refused (AccessDenied)")

    monkeypatch.setattr(RemoteFolder, "write", refuses)
    assert start(tiny, f"{bucket}/run") == 2
    assert "AccessDenied" in capsys.readouterr().err and not Path("runs").exists()
    assert bucket_snapshot(f"{bucket}/run") == {}


def test_a_bucket_whose_checkpoints_are_all_broken_is_not_started_over(tiny: Path, bucket: str, capsys) -> None:
    """A17: what does not verify on the bucket was set aside, and with none left the run began anew."""
    assert start(tiny, f"{bucket}/run", "save_interval=4ba") == 0
    shutil.rmtree("runs")
    store = RemoteFolder(f"{bucket}/run")
    store.write("step-00000004/state.pt", (store.read("step-00000004/state.pt") or b"")[::-1])
    before = bucket_snapshot(f"{bucket}/run")
    assert start(tiny, f"{bucket}/run") == 2
    assert "none verifies" in capsys.readouterr().err
    assert bucket_snapshot(f"{bucket}/run") == before and not Path("runs").exists()


def test_a_folder_that_another_process_filled_meanwhile_is_not_taken(tmp_path: Path) -> None:
    """A16: without a lock file nothing keeps the folder as it was looked at; it is looked at once more."""
    from moe.common.errors import InputError
    from moe.train.checkpointing.run_folder import open_run_folder

    settings = {"run_name": "a", "autoresume": True, "resume_from": None, "report": print}
    slow = open_run_folder(str(tmp_path / "run"), **settings)
    quick = open_run_folder(str(tmp_path / "run"), **settings)
    quick.begin(print)
    quick.let_go()
    with pytest.raises(InputError, match="another process has trained in it since"):
        slow.begin(print)
    before = snapshot(tmp_path)
    slow.let_go()
    assert {name for name in snapshot(tmp_path)} == {name for name in before} and (tmp_path / "run/run.json").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "events.jsonl", "alarms.jsonl"])
def test_a_folder_that_holds_no_run_keeps_what_a_user_has_in_it(tmp_path: Path, name: str) -> None:
    """A start cut a user's metrics.jsonl, wrote over a config.yaml and added to an events.jsonl."""
    from moe.common.errors import InputError
    from moe.train.checkpointing.run_folder import open_run_folder

    (tmp_path / "place").mkdir()
    (tmp_path / "place" / name).write_text("mine: 1\n")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=f"{name}, which a run would write over; give another save_folder, or move"):
        open_run_folder(str(tmp_path / "place"), run_name="a", autoresume=True, resume_from=None, report=print)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl"])
def test_a_pipe_where_a_file_of_the_run_belongs_is_not_waited_for(tmp_path: Path, name: str) -> None:
    from moe.common.errors import InputError
    from moe.train.checkpointing.run_folder import open_run_folder
    from moe.train.inputs import _was_started_with

    settings = {"run_name": "a", "autoresume": True, "resume_from": None, "report": print}
    folder = open_run_folder(str(tmp_path), **settings)
    folder.begin(print)
    folder.let_go()
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with in_time(), pytest.raises(InputError, match=f"no regular file .*{name}"):
        open_run_folder(str(tmp_path), **settings)
    with in_time():
        assert not _was_started_with(tmp_path, "x")
