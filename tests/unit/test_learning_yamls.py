"""benchmarks/learning_yamls.py: what is trained once, and what is said of it."""

import json
import sys
from dataclasses import replace
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
    monkeypatch.setattr(sys, "argv", ["x", "decay", "demo", "--data", "d", "--tokenizer", "t", "--seeds", "2"])
    with pytest.raises(KeyboardInterrupt):
        learning_yamls.main()
    assert learning_yamls.main() == 0
    assert made == [("before", 0), ("after", 0), ("before", 1), ("before", 1), ("after", 1)]
    assert json.loads((results / "decay-demo.json").read_text())["after"]["1"]["loss"] == 5.0


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
    assert learning_yamls.report("decay") == "Not run yet."


def test_the_sides_of_the_decay_are_settings_that_differ_in_the_schedule_alone():
    path = str(Path(__file__).resolve().parents[2] / "yamls/demo.yaml")
    sides = [learning_yamls.decay("demo", side) for side in learning_yamls.SIDES]
    before, after = (load_config(path, [f"{key}={value}" for key, value in side.items()]) for side in sides)
    assert before.scheduler != after.scheduler
    assert replace(before, scheduler=after.scheduler) == after
