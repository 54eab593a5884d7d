"""The line `learning rate` of the checklist: the rates that train, whichever settings give them."""

from pathlib import Path

import pytest

from moe.cli.main import main
from moe.config import load_config
from moe.plan.checks.result import Result
from moe.plan.checks.settings import check_settings
from tests.tiny import tiny_config, write_config


@pytest.fixture
def told(tmp_path: Path):
    path = write_config(tmp_path / "c.yaml", tiny_config(tmp_path))

    def told(*overrides: str) -> Result:
        """For 6,000 steps the rule's rate is 0.00632, and 0.65 of it under AdamW alone."""
        config = load_config(path, ["max_duration=6000ba", "eval_data=null", *overrides])
        return check_settings(config, vocab_size=97, world_size=1)[0]

    return told


def test_under_adamw_alone_its_own_rate_is_judged_where_it_is_set(told) -> None:
    found = told("optimizer.name=adamw", "optimizer.lr=3", "optimizer.adamw.lr=0.004")
    assert found.state == "pass" and found.text.startswith(
        "0.004 (optimizer.adamw.lr; optimizer.lr is not used); usual"
    )
    found = told("optimizer.name=adamw", "optimizer.lr=0.004", "optimizer.adamw.lr=3")
    assert found.state == "warn" and found.text.startswith("optimizer.adamw.lr (3) is ")


def test_the_estimate_shows_the_rate_that_trains(tmp_path: Path, capsys) -> None:
    path = write_config(tmp_path / "c.yaml", tiny_config(tmp_path))
    words = ["optimizer.name=adamw", "optimizer.lr=3", "optimizer.adamw.lr=0.004", "--vocab-size", "97"]
    assert main(["estimate", str(path), *words]) == 0
    assert "  peak rate            0.004" in capsys.readouterr().out
