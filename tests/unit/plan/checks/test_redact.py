"""`moe check --json` is what the issue forms ask for: it names no person and opens no account."""

import json
from pathlib import Path

import pytest

from moe.cli.main import main
from moe.plan.checks.redact import redacted


@pytest.fixture(autouse=True)
def grete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/srv/people/grete7")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "grete7")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/srv/people/grete7/moe/c.yaml: 3 GB free", "~/moe/c.yaml: 3 GB free"),
        ("/srv/people/grete7: no such folder", "~: no such folder"),
        ("/srv/people/grete70/x", "/srv/people/grete70/x"),
        (
            "data in /home/grace/data, /Users/alan.t/x and /home/kurt",
            "data in /home/USER/data, /Users/USER/x and /home/USER",
        ),
        ("owned by grete7 (uid 7), not by grete70; grete7-2", "owned by USER (uid 7), not by grete70; USER-2"),
        ("https://grete7:secret@minio:9000/b and s3://b/x", "https://minio:9000/b and s3://b/x"),
        ("/scratch/grete7/run", "/scratch/USER/run"),
    ],
)
def test_names_homes_and_passwords_are_gone(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_the_json_of_a_check_is_redacted(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    (tmp_path / "grete7").mkdir()
    path = tmp_path / "grete7" / "c.yaml"
    path.write_text("run_name: x\nno_such_key: 1\n")
    assert main(["check", str(path), "--json"]) == 2
    printed = capsys.readouterr().out
    assert "USER/c.yaml" in json.loads(printed)["results"][0]["text"] and "grete7" not in printed


def test_a_user_without_a_name_has_none_to_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: (_ for _ in ()).throw(KeyError("uid not found: 4711")))
    assert redacted("/scratch/grete7/run") == "/scratch/grete7/run"
