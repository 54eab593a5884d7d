"""What a run shows of itself at evaluations, and what can be done with it afterwards; in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moe.cli.main import main as moe
from moe.common.units import clean
from moe.config import ConfigError, load_config
from tests.tiny import tiny_config, write_config, write_run
from tests.unit.train.runs import rows, train, weights

PROMPTS = ["sample_prompts=[the model, every expert]"]


def test_samples_are_shown_and_logged_at_every_evaluation_and_change_nothing_else(
    tiny: Path, tmp_path: Path, capsys
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    short = ["max_duration=24ba", "scheduler.t_warmup=4ba", "eval_interval=12ba", "loggers.tensorboard={}"]
    plain = train(tiny, tmp_path, *short, name="plain")[1]
    capsys.readouterr()
    wandb = "loggers.wandb={project: test, mode: offline}"
    code, folder = train(tiny, tmp_path, *short, *PROMPTS, wandb, name="sampled")
    assert code == 0 and list(folder.glob("wandb/offline-run-*/files/media/html/samples/*.html"))
    for key in ("train/loss", "train/balance_loss", "metrics/eval/loss", "experts/load_max"):
        assert rows(folder, key) == rows(plain, key), key
    expected = weights(plain)
    assert all(torch.equal(value, expected[name]) for name, value in weights(folder).items())
    samples = rows(folder, "samples/the model")
    assert list(samples) == list(rows(folder, "samples/every expert")) == [0, 12, 24]
    assert len(set(samples.values())) == 3, "the model has changed, so have the texts"
    shown = capsys.readouterr().out
    assert shown.count("  the model → ") == 3 and "bits/byte" in shown
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in board.Tensors("samples/the model/text_summary")] == [0, 12, 24]


def test_a_sample_is_what_moe_generate_makes_of_the_checkpoint(tiny: Path, tmp_path: Path, capsys) -> None:
    short = ["max_duration=4ba", "scheduler.t_warmup=1ba", *PROMPTS]
    folder = train(tiny, tmp_path, *short)[1]
    capsys.readouterr()
    assert moe(["generate", str(folder), "--prompt", "the model", "--max-new-tokens", "64"]) == 0
    sample = clean(rows(folder, "samples/the model")[4])  # control characters do not reach a terminal
    assert capsys.readouterr().out.rstrip("\n") == "the model" + sample.rstrip("\n")


def test_moe_eval_prints_what_the_run_has_logged(tiny: Path, tmp_path: Path, capsys) -> None:
    folder = train(tiny, tmp_path, "max_duration=4ba", "scheduler.t_warmup=1ba")[1]
    loss, bits = rows(folder, "metrics/eval/loss")[4], rows(folder, "metrics/eval/bits_per_byte")[4]
    capsys.readouterr()
    assert moe(["eval", str(folder), "--data", str(tiny / "data"), "--max-batches", "2", "--batch-size", "3"]) == 0
    shown = capsys.readouterr().out.split()
    assert float(shown[shown.index("loss") + 1]) == pytest.approx(loss, abs=1e-4)
    assert float(shown[shown.index("byte") + 1]) == pytest.approx(bits, abs=1e-4)


def test_prompts_without_an_evaluation_are_an_error(tiny: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", tiny_config(tiny, eval_data=None))
    with pytest.raises(ConfigError, match="sample_prompts are continued at evaluations and eval_data is null"):
        load_config(path, PROMPTS)


def test_a_run_starts_from_an_imported_folder(tiny: Path, tmp_path: Path, capsys) -> None:
    from moe.use.export.from_hf import import_folder
    from moe.use.export.to_hf import export

    shape = {"n_heads": 2, "n_kv_heads": 1, "expert_hidden": 32}
    export(str(write_run(tmp_path / "first", tiny / "tokenizer", **shape)), out=tmp_path / "hf")
    import_folder(str(tmp_path / "hf"), out=tmp_path / "imported")
    overrides = [f"load_path={tmp_path / 'imported'}", "max_duration=1ba", "scheduler.t_warmup=0ba", "model.dropout=0"]
    code, folder = train(tiny, tmp_path, *overrides, name="next")
    assert code == 0 and "starting from the weights of" in capsys.readouterr().out
    assert moe(["eval", str(tmp_path / "imported"), "--data", str(tiny / "data"), "--max-batches", "2"]) == 2
    assert moe(["eval", str(tmp_path / "imported"), "--data", str(tiny / "data")]) == 0
    capsys.readouterr()
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert moe(["eval", str(tmp_path / "first"), "--data", str(tiny / "data"), "--max-batches", "4"]) == 0
    shown = capsys.readouterr().out.split()
    assert first["metrics/eval/loss"] == pytest.approx(float(shown[shown.index("loss") + 1]), abs=1e-4)
