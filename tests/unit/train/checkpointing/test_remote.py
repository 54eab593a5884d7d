"""A run folder on s3: it resumes from another machine, with the guarantees of a local one."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from moe.cli.train import main
from moe.common.s3 import RemoteError, RemoteFolder
from moe.train.checkpointing.checkpoints import has_files, open_state, read_checkpoint, step_folders, write_checkpoint
from tests.tiny import tiny_config, write_config
from tests.unit.train.runs import assert_same_run, die_after

SETTINGS = ["max_duration=12ba", "scheduler.t_warmup=1ba", "save_interval=2ba", "eval_data=null"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def train(tiny: Path, save_folder: str, *overrides: str) -> int:
    path = write_config(Path("c.yaml"), tiny_config(tiny))
    return main([str(path), f"save_folder={save_folder}", *SETTINGS, *overrides])


def test_a_run_on_s3_goes_on_on_a_machine_that_has_nothing_of_it(
    tiny: Path, tmp_path: Path, bucket: str, monkeypatch, capsys
) -> None:
    assert train(tiny, str(tmp_path / "plain")) == 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_after(7, patch)
        train(tiny, f"{bucket}/run")
    first = json.loads(Path("runs/tiny/run.json").read_text())
    shutil.rmtree("runs")  # the machine is gone
    assert train(tiny, f"{bucket}/run") == 0
    out = capsys.readouterr().out
    assert f"fetching step-00000006 from {bucket}/run" in out and "resumed from step 6" in out
    assert_same_run(Path("runs/tiny"), tmp_path / "plain")
    store = RemoteFolder(f"{bucket}/run")
    assert sorted(name for name in store.list() if name.endswith("manifest.json")) == [
        f"step-000000{step:02}/manifest.json" for step in (8, 10, 12)
    ]
    assert not any(name.startswith("step-00000006") for name in store.list()), "what retention removed is gone whole"
    record = json.loads(store.read("run.json") or b"")
    assert record["state"] == "done" and record["id"] == first["id"]
    for log in ("metrics.jsonl", "events.jsonl"):
        assert store.read(log) == Path("runs/tiny", log).read_bytes()
    told = [json.loads(line) for line in Path("runs/tiny/events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in told if event["event"] != "checkpoint"] == ["start", "failed", "resume", "done"]


@pytest.mark.parametrize("sign", "#?%&")
def test_runs_whose_addresses_differ_after_a_sign_are_two(bucket: str, sign: str) -> None:
    """A19: the address was read as a URL, so that `exp#1` and `exp#2` were one run, `exp`."""
    one, other = (RemoteFolder(f"{bucket}/exp{sign}{n}/run/") for n in (1, 2))
    one.write("run.json", b"one")
    assert other.read("run.json") is None and other.list() == {}
    assert list(RemoteFolder(bucket).list()) == [f"exp{sign}1/run/run.json"]


def test_row05_remote_retention_counts_what_stood_there_before_a_resume(tiny: Path, bucket: str) -> None:
    """Stock retention forgets the files of earlier starts, and remote ones."""
    for steps in (4, 8, 12):
        assert train(tiny, f"{bucket}/run", f"max_duration={steps}ba", "save_num_checkpoints_to_keep=2") == 0
        shutil.rmtree("runs")
    kept = {name.split("/")[0] for name in RemoteFolder(f"{bucket}/run").list("step-")}
    assert kept == {"step-00000010", "step-00000012"}


def test_a_damaged_remote_checkpoint_is_named_set_aside_and_the_one_before_is_used(
    tiny: Path, tmp_path: Path, bucket: str, capsys
) -> None:
    assert train(tiny, f"{bucket}/run", "max_duration=6ba") == 0
    shutil.rmtree("runs")
    store = RemoteFolder(f"{bucket}/run")
    state = bytearray(store.read("step-00000006/state.pt") or b"")
    state[len(state) // 2] ^= 1
    store.write("step-00000006/state.pt", bytes(state))
    assert train(tiny, f"{bucket}/run") == 0
    out = capsys.readouterr().out
    assert "broken checkpoint on" in out and "xxh64 differs" in out and "resumed from step 4" in out
    # without a manifest an upload was cut off: no checkpoint
    store.delete(["step-00000012/manifest.json"])
    shutil.rmtree("runs")
    assert train(tiny, f"{bucket}/run") == 0
    assert "resumed from step 10" in capsys.readouterr().out


def test_going_back_holds_on_the_remote_too(tiny: Path, bucket: str, capsys) -> None:
    assert train(tiny, f"{bucket}/run", "save_num_checkpoints_to_keep=-1") == 0
    shutil.rmtree("runs")
    assert train(tiny, f"{bucket}/run", "resume_from=step:5") == 2
    assert f"no such checkpoint in {bucket}/run; there are step:2, step:4" in capsys.readouterr().err
    assert train(tiny, f"{bucket}/run", "resume_from=step:4", "max_duration=6ba", "optimizer.lr=1e-3") == 0
    out = capsys.readouterr().out
    assert "resumed from step 4" in out
    shutil.rmtree("runs")
    assert train(tiny, f"{bucket}/run", "max_duration=8ba", "optimizer.lr=1e-3") == 0
    assert "resumed from step 6" in capsys.readouterr().out, "the old steps 8 to 12 are no part of the run"
    assert RemoteFolder(f"{bucket}/run").read("step-00000012/left-behind-manifest.json")


def test_a_process_that_was_replaced_stops_before_it_writes(tiny: Path, bucket: str, monkeypatch, capsys) -> None:
    from moe.train.callbacks.console import Console

    store, plain = RemoteFolder(f"{bucket}/run"), Console.batch_end

    def replaced(self, state, logger):
        plain(self, state, logger)
        if int(state.timestamp.batch) == 5:
            while "step-00000004/manifest.json" not in store.list("step-"):  # it is uploaded in the background
                time.sleep(0.01)
            record = json.loads(store.read("run.json") or b"")
            store.write("run.json", json.dumps({**record, "session": "other", "host": "other-host"}).encode())

    monkeypatch.setattr(Console, "batch_end", replaced)
    assert train(tiny, f"{bucket}/run") == 1
    err = capsys.readouterr().err
    assert "on other-host, which trains it now" in err and "Traceback" not in err
    assert {name.split("/")[0] for name in store.list("step-")} == {"step-00000002", "step-00000004"}
    assert json.loads(store.read("run.json") or b"")["session"] == "other"


def test_a_failed_upload_is_told_and_the_next_save_tries_again(tiny: Path, bucket: str, monkeypatch, capsys) -> None:
    plain, failed = RemoteFolder.upload, []

    def fails(self, path, name):
        if name == "step-00000004/manifest.json" and not failed:
            failed.append(name)
            raise RemoteError("the bucket is away")
        plain(self, path, name)

    monkeypatch.setattr(RemoteFolder, "upload", fails)
    assert train(tiny, f"{bucket}/run", "save_num_checkpoints_to_keep=-1") == 0
    assert "step 4 is not on the remote, only in runs/tiny/step-00000004: the bucket is away" in capsys.readouterr().out
    steps = [name.split("/")[0] for name in RemoteFolder(f"{bucket}/run").list() if name.endswith("/manifest.json")]
    assert steps == [f"step-000000{step:02}" for step in (2, 6, 8, 10, 12)]
    assert Path("runs/tiny/step-00000004").is_dir()


def test_an_address_that_cannot_be_used_is_told_before_training(tiny: Path, bucket: str, capsys) -> None:
    assert train(tiny, "s3://nowhere-to-be-found/run") == 2
    err = capsys.readouterr().err
    assert "save_folder (s3://nowhere-to-be-found/run) cannot be used" in err and "no such bucket" in err


def test_shards_on_s3_are_fetched_as_they_are_needed_and_a_changed_one_is_named(
    tiny: Path, tmp_path: Path, bucket: str, capsys
) -> None:
    store, data = RemoteFolder(f"{bucket}/data"), tiny / "data"
    for path in data.rglob("*"):
        if path.is_file():
            store.upload(path, str(path.relative_to(data)))
    assert train(tiny, str(tmp_path / "plain")) == 0
    remote = [f"train_data.remote={bucket}/data", "num_workers=1"]
    assert train(tiny, str(tmp_path / "far"), f"train_data.local={tmp_path / 'cache'}", *remote) == 0
    assert_same_run(tmp_path / "far", tmp_path / "plain")
    assert (tmp_path / "cache/train/shard.00000.mds").read_bytes() == (data / "train/shard.00000.mds").read_bytes()
    shard = bytearray((data / "train/shard.00000.mds").read_bytes())
    shard[len(shard) // 2] ^= 1
    store.write("train/shard.00000.mds", bytes(shard))
    capsys.readouterr()
    assert train(tiny, str(tmp_path / "bad"), f"train_data.local={tmp_path / 'cache2'}", *remote) == 1
    err = capsys.readouterr().err
    assert "shard.00000.mds: cannot be fetched from" in err and "Checksum failure" in err and "Traceback" not in err
    store.delete(["meta.json"])
    assert train(tiny, str(tmp_path / "none"), f"train_data.local={tmp_path / 'cache3'}", *remote) == 2
    assert "meta.json cannot be fetched" in capsys.readouterr().err


def test_a_machine_that_comes_back_takes_over_the_logs_of_the_one_between(
    tiny: Path, tmp_path: Path, bucket: str, monkeypatch
) -> None:
    assert train(tiny, str(tmp_path / "plain"), "scheduler.name=constant_with_warmup") == 0
    for machine, steps in (("a", 4), ("b", 8), ("a", 12)):
        (tmp_path / machine).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / machine)
        assert train(tiny, f"{bucket}/run", f"max_duration={steps}ba", "scheduler.name=constant_with_warmup") == 0
    assert_same_run(tmp_path / "a/runs/tiny", tmp_path / "plain")


def test_a_last_checkpoint_that_was_not_uploaded_is_uploaded_by_the_next_start(
    tiny: Path, bucket: str, monkeypatch, capsys
) -> None:
    plain = RemoteFolder.upload

    def fails(self, path, name):
        if name.startswith("step-00000012"):
            raise RemoteError("the bucket is away")
        plain(self, path, name)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "upload", fails)
        assert train(tiny, f"{bucket}/run") == 1
    assert train(tiny, f"{bucket}/run") == 0
    assert "uploading step 12, which is only in runs/tiny" in capsys.readouterr().out
    assert RemoteFolder(f"{bucket}/run").read("step-00000012/manifest.json")


def test_a_damaged_run_file_is_named_on_either_side(tiny: Path, bucket: str, capsys) -> None:
    assert train(tiny, f"{bucket}/run", "max_duration=2ba") == 0
    store, local = RemoteFolder(f"{bucket}/run"), Path("runs/tiny/run.json")
    good = local.read_bytes()
    local.write_text("{")
    assert train(tiny, f"{bucket}/run") == 2
    assert "runs/tiny/run.json: is damaged" in capsys.readouterr().err
    local.write_bytes(good)
    store.write("run.json", b"[1]")
    assert train(tiny, f"{bucket}/run") == 2
    assert (
        f"{bucket}/run/run.json: is damaged (it is [1]; an object is needed); restore or remove it"
        in capsys.readouterr().err
    )


def test_a_bucket_that_takes_no_removal_is_a_warning_and_tried_again(
    tiny: Path, bucket: str, monkeypatch, capsys
) -> None:
    """B5: a bucket policy without delete: "is not on the remote", and the run ended after five."""
    settings = ["save_num_checkpoints_to_keep=1", "max_failed_saves=1", "scheduler.name=constant_with_warmup"]

    def refuses(self: RemoteFolder, names: list[str]) -> None:
        raise RemoteError(f"{self.url}: cannot delete {names[0]}: refused (AccessDenied)")

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "delete", refuses)
        assert train(tiny, f"{bucket}/run", *settings) == 0
    out = capsys.readouterr().out
    assert "older checkpoints cannot be removed" in out and "AccessDenied" in out and "not on the remote" not in out
    assert len({name.split("/")[0] for name in RemoteFolder(f"{bucket}/run").list("step-")}) == 6
    assert train(tiny, f"{bucket}/run", *settings, "max_duration=14ba") == 0
    assert {name.split("/")[0] for name in RemoteFolder(f"{bucket}/run").list("step-")} == {"step-00000014"}


def test_a_machine_with_checkpoints_of_a_branch_that_was_left_behind_takes_the_remotes(
    tiny: Path, tmp_path: Path, bucket: str, monkeypatch, capsys
) -> None:
    """It resumed from its own later step and uploaded it: the run had gone back on another machine meanwhile."""
    keep = ["save_num_checkpoints_to_keep=-1", "scheduler.name=constant_with_warmup"]
    for machine, settings in (
        ("a", ["max_duration=8ba"]),
        ("b", ["max_duration=6ba", "resume_from=step:4", "optimizer.lr=1e-3"]),
    ):
        (tmp_path / machine).mkdir()
        monkeypatch.chdir(tmp_path / machine)
        assert train(tiny, f"{bucket}/run", *keep, *settings) == 0
    capsys.readouterr()
    monkeypatch.chdir(tmp_path / "a")
    assert train(tiny, f"{bucket}/run", *keep, "max_duration=10ba", "optimizer.lr=1e-3") == 0
    out = capsys.readouterr().out
    assert "resumed from step 6 " in out and "uploading" not in out
    assert "step 8 stays as left-behind-step-00000008-" in out and "is not part of the run any more" in out
    store = RemoteFolder(f"{bucket}/run")
    for step in (6, 8, 10):
        name = f"step-{step:08d}/manifest.json"
        manifest = json.loads(Path("runs/tiny", name).read_text())
        assert manifest["config"]["optimizer"]["lr"] == 1e-3, step
        assert store.read(name) == Path("runs/tiny", name).read_bytes()
    assert train(tiny, f"{bucket}/run", *keep, "max_duration=10ba", "optimizer.lr=1e-3") == 0
    assert "complete: step 10" in capsys.readouterr().out


def test_a_local_checkpoint_that_is_damaged_comes_anew_from_the_remote(tiny: Path, bucket: str, capsys) -> None:
    """What was fetched in its place was set aside with it."""
    assert train(tiny, f"{bucket}/run", "max_duration=4ba", "scheduler.name=constant_with_warmup") == 0
    with open("runs/tiny/step-00000004/state.pt", "r+b") as file:
        file.seek(1000)
        file.write(b"damaged")
    assert train(tiny, f"{bucket}/run", "max_duration=6ba", "scheduler.name=constant_with_warmup") == 0
    out = capsys.readouterr().out
    assert "resumed from step 4 " in out and "it stays as set-aside-step-00000004" in out
    assert Path("runs/tiny/set-aside-step-00000004").is_dir()
    new = Path("runs/tiny/step-00000004")
    assert has_files(new, read_checkpoint(new).manifest)


def opened(tiny: Path, url: str, monkeypatch, answer: Any = None) -> Any:
    """What `open_folder` gives on one of two machines: on the second where the answer of the first is given."""
    from moe.config import load_config
    from moe.train import opening
    from moe.train.inputs import check_data

    path = write_config(Path("c.yaml"), tiny_config(tiny))
    config = load_config(str(path), [f"save_folder={url}", *SETTINGS])
    with monkeypatch.context() as patch:
        patch.setattr(opening, "MACHINES", 2)
        patch.setattr(opening, "WORLD_SIZE", 2)
        patch.setattr(opening, "RANK", int(answer is not None))
        patch.setattr(opening, "agreed", lambda call, here: call() if here else answer)
        patch.setattr(opening, "on_each", lambda call, here: [call() if here else None])
        return opening.open_folder(config, check_data(config, report=print))


def test_another_machine_takes_the_very_checkpoint_of_the_first_and_keeps_no_older_copies(
    tiny: Path, tmp_path: Path, bucket: str, monkeypatch
) -> None:
    """One that had another of the same step ended the run; and each resume left one more there."""
    url, machine = f"{bucket}/run", tmp_path / "b"
    assert train(tiny, url, "max_duration=4ba") == 0
    folder, start = opened(tiny, url, monkeypatch)
    folder.let_go()
    machine.mkdir()
    monkeypatch.chdir(machine)
    own = Path("runs/tiny")
    manifest = {"tokens": 5, "config": {}, "data": "d", "eos_id": 0, "vocab_size": 9, "tokenizer": None}
    for step in (1, 4):  # of a branch that was left behind while this machine was the first
        write_checkpoint(own, step, {"state": {}}, manifest)
    for turn in range(2):
        load = opened(tiny, url, monkeypatch, (folder.record, folder.checkpoint, start, False))[1].load
        open_state(load).close()
        assert has_files(load.path, start.load.manifest)
        names = ["set-aside-step-00000004", "step-00000001", "step-00000004"]
        assert sorted(path.name for path in own.glob("*step*")) == names, turn
    monkeypatch.chdir(tmp_path)
    assert train(tiny, url, "max_duration=6ba", "scheduler.name=constant_with_warmup") == 0
    folder, start = opened(tiny, url, monkeypatch)
    folder.let_go()
    monkeypatch.chdir(machine)
    opened(tiny, url, monkeypatch, (folder.record, folder.checkpoint, start, False))
    assert [path.name for path in step_folders(own)] == ["step-00000001", "step-00000006"]


def test_a_checkpoint_that_did_not_arrive_is_there_before_other_machines_fetch_it(
    tiny: Path, bucket: str, monkeypatch
) -> None:
    """They ended every start: "has no manifest"."""
    url = f"{bucket}/run"
    assert train(tiny, url, "max_duration=4ba") == 0
    store = RemoteFolder(url)
    store.write("step-00000004/manifest.json", store.read("step-00000002/manifest.json") or b"")  # an earlier one's
    opened(tiny, url, monkeypatch)[0].let_go()
    assert store.read("step-00000004/manifest.json") == Path("runs/tiny/step-00000004/manifest.json").read_bytes()
    store.delete(["step-00000004/manifest.json"])
    opened(tiny, url, monkeypatch)[0].let_go()
    assert store.read("step-00000004/manifest.json")
