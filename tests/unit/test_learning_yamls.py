"""benchmarks/learning_yamls.py: what is trained once, and what is said of it."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import learning_yamls


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(learning_yamls, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_each_run_is_made_once_and_kept_as_it_ends(results, monkeypatch):
    made = []

    def train(name, auto, seed, data, tokenizer):
        made.append((auto, seed))
        if len(made) == 3:
            raise KeyboardInterrupt
        return {"loss": 4.0 + seed, "commit": "abc", "preload": ""}

    monkeypatch.setattr(learning_yamls, "train", train)
    monkeypatch.setattr(sys, "argv", ["x", "demo", "--data", "d", "--tokenizer", "t", "--seeds", "2"])
    with pytest.raises(KeyboardInterrupt):
        learning_yamls.main()
    assert learning_yamls.main() == 0
    assert made == [(False, 0), (True, 0), (False, 1), (False, 1), (True, 1)]
    assert json.loads((results / "demo.json").read_text())["auto"]["1"]["loss"] == 5.0


def test_the_table_takes_differences_seed_by_seed_and_says_whether_auto_is_no_worse(results):
    results.mkdir()
    for name, more in (("demo", 0.01), ("quick", 0.03)):
        found = {"hand": {}, "auto": {}}
        for seed, loss in (("0", 4.0), ("1", 5.0)):
            found["hand"][seed], found["auto"][seed] = {"loss": loss}, {"loss": loss + more}
        found["hand"]["2"] = {"loss": 9.0}  # whose other run is not made yet
        (results / f"{name}.json").write_text(json.dumps(found))
    demo, quick = learning_yamls.report().splitlines()[2:]
    assert demo == "| demo | 2 | 4.500 | 4.510 | +0.010 ± 0.000 | yes |"
    assert quick == "| quick | 2 | 4.500 | 4.530 | +0.030 ± 0.000 | no |"
