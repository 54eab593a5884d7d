"""Evaluation and generations under ranks: one in this process, two by the launcher."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moe.cli.train import main
from moe.common.units import short
from moe.data.meta import read_meta
from tests.tiny import tiny_config, write_config
from tests.unit.train.runs import rows

ROOT = Path(__file__).resolve().parents[2]
COMPOSER = str(Path(sys.executable).with_name("composer"))


def test_ranks_change_neither_the_evaluation_nor_the_samples(tiny: Path, tmp_path: Path, capsys) -> None:
    config = write_config(tmp_path / "c.yaml", tiny_config(tiny, save_folder=str(tmp_path / "${run_name}")))
    overrides = ["max_duration=4ba", "scheduler.t_warmup=1ba", "model.dropout=0"]
    overrides += ["global_train_batch_size=16", "eval_data.max_batches=-1", "sample_prompts=[the model]"]
    assert main([str(config), *overrides, "run_name=one"]) == 0
    one = capsys.readouterr().out
    command = [COMPOSER, "-n", "2", str(ROOT / "train.py"), str(config), *overrides, "run_name=two"]
    two = subprocess.run(command, capture_output=True, text=True)
    assert two.returncode == 0, two.stdout + two.stderr
    tokens = read_meta(tiny / "data").samples["val"] * 32
    assert tokens % (16 * 32), "the last batch is filled with padding"
    assert one.count(f"({short(tokens)} tok, ") == two.stdout.count(f"({short(tokens)} tok, ") == 2
    assert two.stdout.count("  the model → ") == 2, "at steps 0 and 4, by one rank only"
    for key in ("metrics/eval/loss", "metrics/eval/bits_per_byte"):
        found = rows(tmp_path / "two", key)
        assert sorted(found) == [0, 4] and found == pytest.approx(rows(tmp_path / "one", key), rel=1e-5)
    assert rows(tmp_path / "two", "samples/the model")[0] == rows(tmp_path / "one", "samples/the model")[0]
