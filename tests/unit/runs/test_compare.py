"""What differs between runs: of data only what is still the run's, and one bad file ends nothing."""

import json
import os
from pathlib import Path

import pytest

from moe.cli.main import main
from moe.data.read.fingerprint import data_fingerprint
from moe.runs.compare import differences, metas
from moe.runs.reading import read_run
from moe.use.export.card import _metas as card_metas
from tests.unit.plan.test_new import write_meta
from tests.unit.runs.folders import make_run

BOMB = "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


def run_on(tmp_path: Path, name: str, data: Path, trained_on: str | None = None) -> Path:
    """A run on the data of a folder; or, by its manifests, on others."""
    folder = make_run(tmp_path / name, train_data={"local": str(data), "streams": {}})
    for manifest in folder.glob("step-*/manifest.json"):
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**content, "data": trained_on or data_fingerprint(data)}))
    return folder


def test_data_that_were_made_anew_are_not_told_as_a_runs(tmp_path: Path, monkeypatch) -> None:
    """The page, the comparison and the model card described what lies at the path now."""
    data = tmp_path / "data"
    write_meta(data, dataset="the/own")
    own, other = run_on(tmp_path, "own", data), run_on(tmp_path, "other", data, trained_on="0123456789abcdef")
    assert metas(read_run(own))[""]["dataset"] == "the/own" and metas(read_run(other)) == {}
    streams = {"streams": {"a": {"local": str(data)}, "b": {"local": str(tmp_path / "gone")}}}
    assert [meta.dataset for meta in card_metas(streams, f"a {data_fingerprint(data)} train1.0")] == ["the/own"]
    assert card_metas({"local": str(data)}, "0123456789abcdef") == []
    text = make_run(tmp_path / "text", train_data={"local": None, "text": {"dataset": "x"}})
    monkeypatch.chdir(data)
    assert metas(read_run(text)) == {}, "of the folder that the command was called in"


@pytest.mark.parametrize("kind", ["fifo", "deep", "surrogate", "text"])
def test_a_bad_meta_json_of_the_data_ends_nothing(tmp_path: Path, kind: str) -> None:
    data = tmp_path / "data"
    write_meta(data, dataset="\ud800" if kind == "surrogate" else "d")
    run = run_on(tmp_path, "run", data)
    if kind == "fifo":
        (data / "meta.json").unlink()
        os.mkfifo(data / "meta.json")
    elif kind != "surrogate":
        (data / "meta.json").write_text("[" * 100_000 if kind == "deep" else "\x00")
    other = make_run(tmp_path / "other")
    assert main(["diff", str(run), str(other)]) == 0
    assert main(["report", str(run), "--out", str(tmp_path / "r.html")]) == 0


def test_a_config_of_aliases_or_dates_hides_no_other_run(tmp_path: Path, capsys) -> None:
    """A few hundred bytes of aliases took all time and memory, and the run beside it was not listed."""
    good, bomb, dated = (make_run(tmp_path / "runs" / name) for name in ("good", "bomb", "dated"))
    (bomb / "config.yaml").write_text("a: &a [x, x, x, x, x, x, x, x, x]\n" + BOMB)
    (dated / "config.yaml").write_text((dated / "config.yaml").read_text() + "alert_command: 2024-01-01\n")
    assert main(["runs", str(tmp_path / "runs")]) == 0
    assert "good" in capsys.readouterr().out and read_run(bomb).config == {}
    assert "2024-01-01" in str(differences([read_run(good), read_run(dated)]))
