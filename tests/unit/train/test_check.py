"""`moe check` without `--fast`, and `check=true`: hashes, one real step, a checkpoint that is written and read."""

import shutil
from pathlib import Path

import pytest

from moe.cli.main import main
from tests.tiny import tiny_config, write_config
from tests.unit.train.runs import train


@pytest.fixture
def arguments(tiny: Path, tmp_path: Path) -> list[str]:
    """Config and settings of a run on a copy of the tiny dataset."""
    shutil.copytree(tiny / "data", tmp_path / "data")
    config = write_config(tmp_path / "check.yaml", tiny_config(tiny))
    return [
        str(config),
        f"train_data.local={tmp_path / 'data'}",
        f"save_folder={tmp_path / 'runs/one'}",
        "eval_data=null",
    ]


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of change."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def test_check_reads_every_byte_of_data_and_checkpoints_and_changes_nothing(
    tiny: Path, tmp_path: Path, arguments: list[str], capsys
) -> None:
    before = files(tmp_path / "data")
    assert main(["check", *arguments]) == 0
    out = capsys.readouterr().out
    assert "sizes and xxh64 of all shards" in out and "starts fresh" in out and not (tmp_path / "runs").exists()
    assert "pass  step " in out and "the same loss" in out and "0 warn, 0 fail" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["check.yaml", "data"], "nothing is left"
    settings = [*arguments[1:], "max_duration=4ba", "scheduler.t_warmup=1ba", "save_interval=2ba"]
    assert train(tiny, tmp_path, *settings)[0] == 0
    run = files(tmp_path / "runs/one")
    assert main(["check", *arguments, *settings]) == 0 and "is complete, at step 4 of 4" in capsys.readouterr().out
    assert main(["check", *arguments, "--fast"]) == 0
    out = capsys.readouterr().out
    assert "warn  resume" in out and "resumes from step 4 of 40" in out and "max_duration: was 4ba" in out
    assert files(tmp_path / "runs/one") == run and files(tmp_path / "data") == before
    state = tmp_path / "runs/one/step-00000004/state.pt"
    for path, error in ((state, "resume from step 2"), (tmp_path / "data/train/shard.00000.mds", "its bytes changed")):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert main(["check", *arguments, *settings]) == 2
        assert error in capsys.readouterr().out
    assert state.exists(), "nothing was set aside"


def test_check_true_is_the_same_program_and_trains_nothing(tmp_path: Path, arguments: list[str], capsys) -> None:
    from moe.cli.train import main as run

    assert run([*arguments, "check=true"]) == 0
    assert "the same loss" in capsys.readouterr().out and not (tmp_path / "runs").exists()
    assert run([*arguments, "check=true", "max_duration=10000000tok"]) == 0
    assert "warn  tokens" in capsys.readouterr().out
    assert run([*arguments, "check=true", "train_data.local=nowhere"]) == 2
    out = capsys.readouterr().out
    assert "fail  data" in out and "not tried: fix data first" in out


def test_a_step_that_gives_no_number_is_an_error(arguments: list[str], monkeypatch, capsys) -> None:
    from moe.train import composer_model

    sound = composer_model.build_model

    def broken(*args):
        model = sound(*args)
        model.transformer.norm.weight.data.fill_(float("nan"))
        return model

    monkeypatch.setattr(composer_model, "build_model", broken)
    assert main(["check", *arguments]) == 2
    assert "it must be finite: lower optimizer.lr" in capsys.readouterr().out
    assert main(["check", *arguments, "optimizer.name=adamw", "optimizer.adamw.lr=1e-3"]) == 2
    assert "it must be finite: lower optimizer.adamw.lr" in capsys.readouterr().out


def test_a_checkpoint_that_comes_back_as_another_is_an_error(arguments: list[str], monkeypatch, capsys) -> None:
    import moe.train.checkpointing.checkpoints

    read = moe.train.checkpointing.checkpoints.load_state

    def damaged(path: Path, **settings: bool) -> dict:
        state = read(path, **settings)
        state["state"]["model"]["transformer.embed.weight"] = state["state"]["model"]["transformer.embed.weight"] * 1.01
        return state

    monkeypatch.setattr(moe.train.checkpointing.checkpoints, "load_state", damaged)
    assert main(["check", *arguments]) == 2
    out = capsys.readouterr().out
    assert "pass  step " in out and "fail  checkpoint" in out and "the loss is" in out


def test_a_disk_that_fills_up_while_the_checkpoint_is_written_is_an_error(
    tmp_path: Path, arguments: list[str], monkeypatch, capsys
) -> None:
    import torch

    def full(state: object, file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert main(["check", *arguments]) == 2
    assert "No space left on device; fix it or free some space" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["check.yaml", "data"], "nothing is left"
