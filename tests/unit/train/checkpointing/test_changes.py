"""What is changed in mid-run stays told: in events.jsonl, in each manifest, in what reads them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from moe.cli.main import main
from moe.runs.changes import changes
from moe.runs.reading import read_run
from moe.train.checkpointing.changes import new_changes
from moe.train.checkpointing.checkpoints import read_checkpoint
from moe.train.checkpointing.compatibility import check_weights_fit
from moe.use.export.to_hf import export
from tests.unit.train.runs import rows, train

SETTINGS = ["scheduler.t_warmup=1ba", "eval_data=null", "save_interval=4ba", "log_interval=2ba"]


def manifest(step: Path) -> dict[str, Any]:
    return json.loads((step / "manifest.json").read_text())


@pytest.fixture(scope="module")
def changed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps that went on to 8 with another rate, and to 10 with the first one again."""
    from moe.train.stop import StopSignal

    tmp_path = tmp_path_factory.mktemp("changed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignal, "install", lambda self: None)
        patch.setattr(sys, "argv", ["train.py", "c.yaml", "optimizer.lr=5e-4"])
        assert train(tiny, tmp_path, *SETTINGS, "max_duration=4ba")[0] == 0
        assert train(tiny, tmp_path, *SETTINGS, "max_duration=8ba", "optimizer.lr=5e-4")[0] == 0
        code, folder = train(tiny, tmp_path, *SETTINGS, "max_duration=10ba", "num_workers=1")
    assert code == 0
    return folder


def test_a_change_is_an_event_with_both_values_its_step_and_the_command(changed: Path) -> None:
    """D1: lr, max_duration and num_workers."""
    lines = [json.loads(line) for line in (changed / "events.jsonl").read_text().splitlines()]
    first, second = [line for line in lines if line["event"] == "change"]
    assert first["step"] == 4 and first["command"] == "train.py c.yaml optimizer.lr=5e-4"
    assert {"key": "optimizer.lr", "was": 0.005, "now": 0.0005} in first["changes"]
    assert first["rate"].startswith("learning rate ") and first["rate"].endswith(" at step 5")
    assert {"key": "max_duration", "was": "4ba", "now": "8ba"} in first["changes"]
    assert second["step"] == 8 and {"key": "num_workers", "was": 0, "now": 1} in second["changes"]
    assert [line["event"] for line in lines if line["step"] == 4 and line["event"] != "checkpoint"][-2:] == [
        "resume",
        "change",
    ]


def test_the_card_of_a_step_folder_alone_states_each_value_with_its_steps(changed: Path, tmp_path: Path) -> None:
    """D1: by the manifest, without events.jsonl beside it."""
    export(str(changed / "step-00000010"), out=tmp_path / "hf", say=lambda line: None)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| optimizer.lr | 0.005 (steps 1 to 4), 0.0005 (steps 5 to 8), 0.005 (from step 9) |" in card
    assert "| max_duration | 4ba (steps 1 to 4), 8ba (steps 5 to 8), 10ba (from step 9) |" in card
    assert "| num_workers | 0 (steps 1 to 8), 1 (from step 9) |" in card
    export(str(changed), step=8, out=tmp_path / "eight", say=lambda line: None)
    card = (tmp_path / "eight" / "README.md").read_text()
    assert "| optimizer.lr | 0.005 (steps 1 to 4), 0.0005 (from step 5) |" in card, "later ones trained no step of it"


def test_the_card_names_no_path_of_this_machine(changed: Path, tiny: Path, tmp_path: Path) -> None:
    """D6: not of the run, its tokenizer or its data."""
    export(str(changed), out=tmp_path / "hf", say=lambda line: None)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "Tokenizer" in card and "max_duration" in card
    for place in (changed, tiny, tiny.parent, tmp_path, Path.home()):
        assert str(place) not in card


def test_changes_are_shown(changed: Path, tmp_path: Path, capsys) -> None:
    """D1: in watch, runs, diff and the report, there with a mark of its own."""
    assert [change.text for change in changes(read_run(changed)) if change.key == "optimizer.lr"] == [
        "optimizer.lr 0.005 -> 0.0005",
        "optimizer.lr 0.0005 -> 0.005",
    ]
    assert main(["watch", "--once", str(changed)]) == 0
    assert "changed" in capsys.readouterr().out
    assert main(["report", str(changed), "--out", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "optimizer.lr 0.005 -&gt; 0.0005" in page and page.count('class="change"') >= 2
    assert "train.py c.yaml optimizer.lr=5e-4" in page


def test_the_first_step_has_a_row_of_its_own(changed: Path) -> None:
    """D7: the loss of step 1 is in the file and so in the chart, whatever the interval."""
    assert list(rows(changed, "train/loss")) == [1, 2, 4, 6, 8, 10]


def test_the_run_folder_and_its_checkpoints_hold_the_tokenizer(changed: Path, tiny: Path) -> None:
    """A13: as the training leaves them."""
    from moe.data.text.tokenizer import load_tokenizer, tokenizer_fingerprint

    wanted = tokenizer_fingerprint(load_tokenizer(str(tiny / "tokenizer")))
    for folder in (changed, changed / "step-00000010"):
        assert tokenizer_fingerprint(load_tokenizer(str(folder / "tokenizer"))) == wanted
    found = manifest(changed / "step-00000010")
    assert found["tokenizer"] == wanted and "tokenizer/tokenizer.json" in found["files"]


def test_other_versions_are_a_change_and_flags_of_one_start_are_none() -> None:
    """D1: what may change without a word of the user's is told too."""
    saved = {"step": 3, "config": {"seed": 1, "time_limit": None}, "versions": {"torch": "2.10.0", "numpy": "2.0"}}
    found = new_changes(saved, {"seed": 1, "time_limit": "1h"}, {"torch": "2.11.0", "numpy": "2.0"}, {})
    assert found == [{"step": 3, "key": "versions.torch", "was": "2.10.0", "now": "2.11.0"}]


def test_a_setting_that_an_earlier_version_did_not_have_was_at_its_default() -> None:
    """A key that is new in this version was a change of each run that resumed with it."""
    from moe.train.checkpointing.compatibility import compare_configs

    now = {
        "seed": 1,
        "eval_first": True,
        "loggers": {"tensorboard": {}, "wandb": None},
        "optimizer": {"momentum": 0.95},
    }
    now |= {"eval_data": {"local": "x", "max_batches": 7}, "callbacks": [], "sample_prompts": ["a"]}
    saved = {"step": 3, "config": {"seed": 1, "optimizer": {}, "eval_data": {"local": "x"}}}
    found = new_changes(saved, now, {}, {})
    assert [(change["key"], change["was"], change["now"]) for change in found] == [
        ("eval_data.max_batches", 100, 7),
        ("sample_prompts", [], ["a"]),
    ]
    lines = ["eval_data.max_batches: was 100, is 7", "sample_prompts: was [], is ['a']"]
    assert compare_configs(saved["config"], now) == (lines, [])


def test_weights_of_a_model_that_computes_otherwise_are_taken_with_a_line_for_each_difference(changed: Path) -> None:
    """What fits by its shapes and is another function: silent differences cost a run its start."""
    found = read_checkpoint(changed / "step-00000010")
    config = found.manifest["config"]
    now = {"rope_theta": 5e5, "norm_eps": 1e-5, "top_k": 1, "document_mask": False, "dropout": 0.5, "z_loss": 0.1}
    model, told = {**config["model"], **now}, []
    check_weights_fit(found, {**config, "model": model}, found.manifest["vocab_size"], report=told.append)
    assert told == [
        "changed since the checkpoint: model.document_mask: was True, is False",
        "changed since the checkpoint: model.norm_eps: was 1e-06, is 1e-05",
        "changed since the checkpoint: model.rope_theta: was 10000.0, is 500000.0",
        "changed since the checkpoint: model.top_k: was 2, is 1",
    ]
    told.clear()
    check_weights_fit(found, config, found.manifest["vocab_size"], report=told.append)
    assert told == []
