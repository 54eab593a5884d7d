"""Evaluation and generations under ranks: one in this process, two by the launcher."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from moe.cli.train import main
from moe.common.units import short
from moe.data.meta import read_meta
from tests import starts
from tests.tiny import tiny_config, write_config
from tests.unit.train.runs import rows

ROOT = Path(__file__).resolve().parents[2]
COMPOSER = str(Path(sys.executable).with_name("composer"))


def test_ranks_change_neither_the_evaluation_nor_the_samples(tiny: Path, tmp_path: Path, capsys) -> None:
    config = write_config(tmp_path / "c.yaml", tiny_config(tiny, save_folder=str(tmp_path / "${run_name}")))
    overrides = ["max_duration=4ba", "scheduler.t_warmup=1ba", "model.dropout=0"]
    overrides += ["global_train_batch_size=16", "eval_data.max_batches=-1", "sample_prompts=[the model]"]
    names = ["offline_ends", "offline_last_word", "offline_text", "offline_copy"] if find_spec("lm_eval") else []
    tasks = {"names": names, "interval": "2ba", "limit": 5, "include_path": str(ROOT / "yamls" / "tasks")}
    overrides += ["eval_tasks=" + json.dumps(tasks)] if names else []
    assert main([str(config), *overrides, "run_name=one"]) == 0
    one = capsys.readouterr().out
    command = [COMPOSER, "-n", "2", str(ROOT / "train.py"), str(config), *overrides, "run_name=two"]
    two = starts.run(command, text=True)
    assert two.returncode == 0, two.stdout + two.stderr
    tokens = read_meta(tiny / "data").samples["val"] * 32
    assert tokens % (16 * 32), "the last batch is filled with padding"
    assert one.count(f"({short(tokens)} tok, ") == two.stdout.count(f"({short(tokens)} tok, ") == 2
    assert two.stdout.count("  the model → ") == 2, "at steps 0 and 4, by one rank only"
    for key in ("metrics/eval/loss", "metrics/eval/bits_per_byte"):
        found = rows(tmp_path / "two", key)
        assert sorted(found) == [0, 4] and found == pytest.approx(rows(tmp_path / "one", key), rel=1e-5)
    assert rows(tmp_path / "two", "samples/the model")[0] == rows(tmp_path / "one", "samples/the model")[0]
    for task, metric in {
        "offline_ends": "acc_norm",
        "offline_text": "bits_per_byte",
        "offline_copy": "exact_match",
    }.items():
        if task in names:
            found = rows(tmp_path / "two", f"tasks/{task}/{metric}")
            expected = rows(tmp_path / "one", f"tasks/{task}/{metric}")
            assert sorted(found) == [2, 4] and found == pytest.approx(expected, rel=1e-4)
    assert two.stdout.count("tasks at step ") == (2 if names else 0), "by one rank only"
