"""benchmarks/learning_yamls.py: what is trained once, and what is said of it."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import learning_yamls

from moe.config import load_config


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(learning_yamls, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_each_run_is_made_once_and_kept_as_it_ends(results, monkeypatch):
    made = []

    def train(question, name, side, seed, data, tokenizer):
        made.append((side, seed))
        if len(made) == 3:
            raise KeyboardInterrupt
        return {"loss": 4.0 + seed, "commit": "abc", "preload": ""}

    monkeypatch.setattr(learning_yamls, "train", train)
    monkeypatch.setattr(sys, "argv", ["x", "recipe", "demo", "--data", "d", "--tokenizer", "t", "--seeds", "2"])
    with pytest.raises(KeyboardInterrupt):
        learning_yamls.main()
    assert learning_yamls.main() == 0
    assert made == [("before", 0), ("after", 0), ("before", 1), ("before", 1), ("after", 1)]
    assert json.loads((results / "recipe-demo.json").read_text())["after"]["1"]["loss"] == 5.0


def test_the_table_takes_differences_seed_by_seed_and_says_whether_the_change_is_no_worse(results):
    results.mkdir()
    for name, more in (("demo", 0.01), ("quick", 0.03)):
        found = {"before": {}, "after": {}}
        for seed, loss in (("0", 4.0), ("1", 5.0)):
            found["before"][seed], found["after"][seed] = {"loss": loss}, {"loss": loss + more}
        found["before"]["2"] = {"loss": 9.0}  # whose other run is not made yet
        (results / f"rates-{name}.json").write_text(json.dumps(found))
    demo, quick = learning_yamls.report("rates").splitlines()[2:]
    assert demo == "| demo | 2 | 4.500 | 4.510 | +0.010 ± 0.000 | yes |"
    assert quick == "| quick | 2 | 4.500 | 4.530 | +0.030 ± 0.000 | no |"
    assert learning_yamls.report("recipe") == "Not run yet."


@pytest.mark.parametrize("name", ["demo", "quick"])
def test_the_sides_of_the_recipe_have_equal_active_width_and_are_settings(name):
    path = str(Path(__file__).resolve().parents[2] / f"yamls/{name}.yaml")
    found = []
    for side in learning_yamls.SIDES:
        config = load_config(path, [f"{key}={value}" for key, value in learning_yamls.recipe(name, side).items()])
        found.append(config.model.top_k * config.model.expert_hidden)
        assert config.model.n_experts == 4 * config.model.top_k
    assert found[0] == found[1] == 2 * learning_yamls.WIDTHS[name]
