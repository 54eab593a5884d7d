"""Runs the whole trainer on text that is tokenised as it is read: losses, resuming, refusals."""

import json
from pathlib import Path

import pytest
import torch

from moe.cli.train import main
from moe.data.read import lanes
from tests.tiny import tiny_config, write_config, write_text
from tests.unit.train.runs import rows, weights

STEPS = 30
SHORT = ["scheduler.name=constant_with_warmup", "scheduler.t_warmup=2ba", "save_interval=100ba", "eval_interval=15ba"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "WINDOW_TOKENS", 500)
    monkeypatch.setattr(lanes, "LEAST_PIECE", 2000)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text" / "a.jsonl", documents=60, seed=1)
    return write_text(tmp_path / "text" / "b.jsonl", documents=30, seed=2).parent


def run(tiny: Path, text: Path, tmp_path: Path, name: str, *overrides: str, **section: object) -> tuple[int, Path]:
    train_data = {"text": {"dataset": str(text), "val_fraction": 0.1, "lanes": 4, **section}}
    config = tiny_config(tiny, train_data=train_data, eval_data={"text": True, "max_batches": 2})
    path = write_config(tmp_path / f"{name}.yaml", config)
    return main([str(path), f"save_folder={tmp_path / name}", *SHORT, *overrides]), tmp_path / name


def test_text_trains_without_a_conversion_and_evaluates_on_what_it_leaves_out(tiny, text, tmp_path, capsys) -> None:
    code, folder = run(tiny, text, tmp_path, "run", f"max_duration={STEPS}ba")
    out = capsys.readouterr().out
    assert code == 0 and f"{text}: 2 files, 0 MB, tokenised as they are read by " in out
    assert "10.00% of the documents for evaluation" in out
    loss, evaluated = rows(folder, "train/loss"), rows(folder, "metrics/eval/loss")
    assert loss[STEPS] < loss[1] - 1 and sorted(evaluated) == [0, 15, 30] and evaluated[30] < evaluated[0] - 1
    manifest = json.loads((folder / f"step-{STEPS:08d}" / "manifest.json").read_text())
    assert manifest["sample_in_epoch"] == STEPS * 8


@pytest.mark.parametrize("workers", [0, 2])
def test_text_goes_on_after_a_stop_with_the_same_losses_and_weights(tiny, text, tmp_path, workers) -> None:
    _, whole = run(tiny, text, tmp_path, "whole", f"max_duration={STEPS}ba", "num_workers=1")
    loader = f"num_workers={workers}"
    for stop in (7, 19, STEPS):  # 90 documents of some 80 tokens: an epoch ends after 28 steps
        code, cut = run(tiny, text, tmp_path, "cut", f"max_duration={stop}ba", loader)
        assert code == 0
    assert rows(cut, "train/loss") == rows(whole, "train/loss")
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(cut).items())


def test_a_step_that_is_abandoned_is_replayed_from_the_batch_it_had(tiny, text, tmp_path, monkeypatch) -> None:
    from moe.train.callbacks.saver import CheckpointSaver

    _, whole = run(tiny, text, tmp_path, "whole", "max_duration=10ba")
    plain = CheckpointSaver.before_forward

    def overdue(self, state, logger):
        if int(state.timestamp.batch) == 6:  # the batch is fetched, the step is not made
            self.stop_here(state, logger)
        plain(self, state, logger)

    monkeypatch.setattr(CheckpointSaver, "before_forward", overdue)
    code, cut = run(tiny, text, tmp_path, "cut", "max_duration=10ba")
    assert code == 75 and (cut / "step-00000006").is_dir()
    monkeypatch.setattr(CheckpointSaver, "before_forward", plain)
    code, cut = run(tiny, text, tmp_path, "cut", "max_duration=10ba")
    assert code == 0 and rows(cut, "train/loss") == rows(whole, "train/loss")


def test_changed_text_or_lanes_are_refused_with_both_values(tiny, text, tmp_path, capsys) -> None:
    run(tiny, text, tmp_path, "run", "max_duration=3ba")
    capsys.readouterr()
    code, _ = run(tiny, text, tmp_path, "run", "max_duration=5ba", lanes=2)
    told = capsys.readouterr().err
    assert code == 2 and "lanes 4, " in told and "lanes 2, " in told
    write_text(text / "c.jsonl", documents=5)
    code, _ = run(tiny, text, tmp_path, "run", "max_duration=5ba")
    assert code == 2 and "train_data: was data text " in capsys.readouterr().err


def test_a_source_that_fails_while_training_is_one_message_and_exit_code_1(
    tiny, text, tmp_path, capsys, monkeypatch
) -> None:
    from moe.data.text.errors import BadFileError

    plain = lanes.read_batches

    def breaks(unit, column, **how):
        if unit.file.name == "b.jsonl" and unit.begin:
            raise BadFileError("b.jsonl", "cannot be read to its end (gone); fetch it again")
        return plain(unit, column, **how)

    monkeypatch.setattr(lanes, "read_batches", breaks)
    code, _ = run(tiny, text, tmp_path, "run", "num_workers=2", "eval_data=null", f"max_duration={STEPS}ba")
    told = capsys.readouterr().err
    assert code == 1 and "error: train_data.text: b.jsonl: cannot be read to its end (gone)" in told
    assert "Traceback" not in told


def test_errors_of_the_section_are_told_before_training(tiny, text, tmp_path, capsys) -> None:
    code, _ = run(tiny, tmp_path / "nowhere", tmp_path, "run", "max_duration=5ba")
    assert code == 2 and "train_data.text: dataset " in capsys.readouterr().err
    code, _ = run(tiny, text, tmp_path, "run", "max_duration=5ba", text_column="body")
    assert code == 2 and "choose one with text_column" in capsys.readouterr().err
