"""The line `learning rate` of the checklist: the rates that train, whichever settings give them."""

from pathlib import Path

import pytest

from moe.cli.main import main
from moe.config import load_config
from moe.optim.auto import resolve
from moe.plan.checks.folder import kept_settings
from moe.plan.checks.result import Result
from moe.plan.checks.settings import check_settings
from tests.tiny import tiny_config, write_config, write_run


@pytest.fixture
def told(tmp_path: Path):
    path = write_config(tmp_path / "c.yaml", tiny_config(tmp_path))

    def told(*overrides: str) -> Result:
        """For 6,000 steps the rule's rate is 0.00633, and 0.65 of it under AdamW alone."""
        config, _ = resolve(load_config(path, ["max_duration=6000ba", "eval_data=null", *overrides]))
        return check_settings(config, vocab_size=97, world_size=1)[0]

    return told


def test_under_adamw_alone_its_own_rate_is_judged_where_it_is_set(told) -> None:
    found = told("optimizer.name=adamw", "optimizer.lr=3", "optimizer.adamw.lr=0.004")
    assert found.state == "pass" and found.text.startswith(
        "0.004 (optimizer.adamw.lr; optimizer.lr is not used); usual"
    )
    found = told("optimizer.name=adamw", "optimizer.lr=0.004", "optimizer.adamw.lr=3")
    assert found.state == "warn" and found.text.startswith("optimizer.adamw.lr (3) is ")


ORIGINAL = ["optimizer.adjust_lr_fn=original", "optimizer.lr=0.1"]  # 16 times the rule's, about as `original` wants it


def test_under_original_adamws_rate_is_judged_as_it_trains(told) -> None:
    """Embedding, head and norms at a rate for Muon's unscaled updates: null and the number written out are alike."""
    for words, shown in (([], "(null: optimizer.lr, 0.1)"), (["optimizer.adamw.lr=0.1"], "(0.1)")):
        found = told(*ORIGINAL, *words)
        assert found.state == "warn" and found.text.startswith(f"optimizer.adamw.lr {shown} is 15.8 times the 0.0063 ")
        assert found.text.endswith("use about 0.006, or auto")
    for words in (["optimizer.adamw.lr=0.006"], ["optimizer.adamw.lr=auto"]):
        found = told(*ORIGINAL, *words)
        assert found.state == "pass" and found.text == "0.1; usual for a run of this size: 0.13"


def test_auto_is_only_advised_where_it_is_the_rules_rate(told) -> None:
    found = told("optimizer.adjust_lr_fn=original", "optimizer.lr=3", "optimizer.adamw.lr=auto")
    assert found.text.startswith("optimizer.lr (3) ") and found.text.endswith("; use about 0.1")
    found = told("optimizer.name=adamw", "optimizer.lr=3", "optimizer.adamw.lr=3")
    assert found.text.endswith("; use about 0.004, or optimizer.lr=auto without it")


def test_the_estimate_shows_what_adamws_groups_train_at(tmp_path: Path, capsys) -> None:
    path = write_config(tmp_path / "c.yaml", tiny_config(tmp_path))
    assert main(["estimate", str(path), *ORIGINAL, "--vocab-size", "97"]) == 0
    out = capsys.readouterr().out
    assert (
        "  peak rate              0.1           0.6 " in out and "  AdamW's                0.1          0.03\n" in out
    )
    assert main(["estimate", str(path), "--vocab-size", "97"]) == 0
    assert "  AdamW's " not in capsys.readouterr().out


def test_the_estimate_shows_the_rate_that_trains(tmp_path: Path, capsys) -> None:
    path = write_config(tmp_path / "c.yaml", tiny_config(tmp_path))
    words = ["optimizer.name=adamw", "optimizer.lr=3", "optimizer.adamw.lr=0.004", "--vocab-size", "97"]
    assert main(["estimate", str(path), *words]) == 0
    assert "  peak rate            0.004" in capsys.readouterr().out


def test_a_run_that_continues_another_keeps_its_numbers(tiny: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", tiny_config(tmp_path))
    other = write_run(tmp_path / "other", tiny / "tokenizer")
    words = [f"save_folder={tmp_path / 'new'}", f"load_path={other}"]
    continued = kept_settings(load_config(path, [*words, "load_weights_only=false"]))
    assert continued is not None and continued["optimizer"]["lr"] == 0.001
    assert kept_settings(load_config(path, words)) is None, "of weights alone nothing is kept"
