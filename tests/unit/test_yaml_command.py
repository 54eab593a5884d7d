"""`moe yaml`: the yamls to begin with."""

from pathlib import Path

import pytest

from moe.cli.main import main
from moe.config import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_name_all_are_listed_with_what_they_are_for(capsys: pytest.CaptureFixture) -> None:
    assert main(["yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in (ROOT / "yamls").glob("*.yaml"))
    assert all(len(line.split()) > 5 and line.endswith(".") for line in lines)


@pytest.mark.parametrize("name", ["quick", "quick.yaml"])
def test_a_copy_is_written_and_the_next_command_told(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["yaml", name]) == 0
    assert capsys.readouterr().out.rstrip().endswith("moe train quick.yaml")
    assert load_config("quick.yaml") == load_config(ROOT / "yamls/quick.yaml")


def test_a_file_that_is_there_is_never_written_over(elsewhere: Path, capsys: pytest.CaptureFixture) -> None:
    (elsewhere / "quick.yaml").write_text("mine")
    assert main(["yaml", "quick"]) == 2
    assert "quick.yaml is there already" in capsys.readouterr().err
    assert (elsewhere / "quick.yaml").read_text() == "mine"
    assert main(["yaml", "quick", "--out", "other.yaml"]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["7b"], "there is no yaml '7b'; there are 1_5b, 1b, "),
        (["../setup"], "there is no yaml '../setup'"),
        (["quick", "--out", "no/such/folder.yaml"], "cannot be written (No such file or directory)"),
        (["quick", "--out", "s3://bucket/quick.yaml"], "--out (s3://bucket/quick.yaml) must be a path on this machine"),
        (["--out", "x.yaml"], "--out (x.yaml) needs the name of a yaml"),
    ],
)
def test_what_cannot_be_is_one_message(words: list[str], told: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["yaml", *words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
