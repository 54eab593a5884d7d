"""Run folders of earlier versions, kept as files (tests/fixtures/make_run.py): this version resumes them as they would.

- On the machine that made the folder bit for bit; on another one, whose sums have other last bits, as in
  test_first_losses.py.
- A checkpoint names the classes its parts are of: one that is renamed needs a reader for the old name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from composer import State

from moe.cli.train import main
from moe.model.balance import with_present_names
from tests.fixtures.make_run import KEYS, machine, outcome

FOLDERS = sorted(Path(__file__).resolve().parents[2].glob("fixtures/run-*"))
TOLERANCE = 1e-4  # relative, after 14 steps


@pytest.mark.parametrize("made", FOLDERS, ids=lambda folder: folder.name)
def test_a_run_of_an_earlier_version_goes_on_as_it_would_have(made: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    read: list[set[str]] = []
    plain = State.load_state_dict

    def load(state: State, content: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        saved = {name for kind in ("callbacks", "optimizers") for name, part in content[kind].items() if part}
        read.append(saved - {type(part).__qualname__ for part in (*state.callbacks, *state.optimizers)})
        plain(state, content, *args, **kwargs)

    monkeypatch.setattr(State, "load_state_dict", load)
    shutil.copytree(made, tmp_path / "run", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "run")
    assert main(["config.yaml"]) == 0
    assert "resumed from step 10 " in capsys.readouterr().out
    assert read == [set()], "of these parts of the state Composer finds no reader, and says nothing"
    found, expected = outcome(Path("run")), json.loads(Path("expected.json").read_text())
    expected["weights"] = with_present_names(expected["weights"])
    if machine() == expected["computed_by"]:
        assert found == expected
    for key in KEYS:
        assert found[key] == pytest.approx(expected[key], rel=TOLERANCE)
    assert found["weights"].keys() == expected["weights"].keys()


def test_an_earlier_version_is_kept() -> None:
    assert [folder.name for folder in FOLDERS][:1] == ["run-0.1"]
