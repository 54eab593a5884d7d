"""`optimizer.lr: auto` in a run: what is said, kept and trained; resuming with another length moves no rate."""

import json
from pathlib import Path

import pytest

from moe.config import load_config
from moe.plan.checks.checklist import run_checks
from tests.unit.train.runs import rows, train

AUTO = [
    "optimizer.lr=auto",
    "optimizer.weight_decay=auto",
    "scheduler.t_warmup=auto",
    "scheduler.name=constant_with_warmup",
    "eval_data=null",
    "save_interval=100ba",
    "model.dropout=0",
]


def test_a_run_trains_by_the_rule_and_resumes_at_its_own_rate(tiny: Path, tmp_path: Path, capsys) -> None:
    code, folder = train(tiny, tmp_path, *AUTO, "max_duration=30ba")
    out = capsys.readouterr().out
    kept = json.loads((folder / "run.json").read_text())["auto"]
    config = load_config(folder / "config.yaml")
    assert code == 0 and kept == {
        "optimizer.lr": config.optimizer.lr,
        "optimizer.weight_decay": 0.1,
        "scheduler.t_warmup": "3ba",
    }
    assert f"rates   auto: optimizer.lr {config.optimizer.lr:g}," in out
    applied = rows(folder, "optim/lr/muon")
    assert applied[30] == pytest.approx(config.optimizer.lr)

    code, _ = train(tiny, tmp_path, *AUTO, "max_duration=2000ba", "time_limit=1s")
    out = capsys.readouterr().out
    assert code == 75 and f"optimizer.lr {config.optimizer.lr:g} (kept; the rule gives 0.00913 now" in out
    assert "learning rate" not in out.split("\nstep ")[0], "no rate moves"
    assert "changed since the checkpoint: max_duration" in out and "optimizer.lr: was" not in out
    assert max(rows(folder, "optim/lr/muon").values()) == pytest.approx(config.optimizer.lr)
    assert load_config(folder / "config.yaml").optimizer.lr == config.optimizer.lr

    wanted = load_config(tmp_path / "c.yaml", [f"save_folder={folder}", *AUTO, "max_duration=4000ba"])
    first = next(iter(run_checks(wanted, world_size=1, fast=True, report=print)))
    assert (first.name, first.state) == ("auto", "pass")
    assert f"optimizer.lr {config.optimizer.lr:g} (kept; the rule gives" in first.text, "the rate that would train"
