"""Where an alarm goes: a command, and W&B."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

from moe.train.health.detectors import Alarm
from tests.unit.train.runs import SHORT, train


def wait_for(path: Path) -> str:
    for _ in range(200):
        if path.exists() and path.read_text().endswith("\n"):
            break
        time.sleep(0.05)
    return path.read_text()


def test_the_alert_command_gets_the_message_as_it_is(tmp_path: Path) -> None:
    from moe.train.health.alert import run_command

    script, out = tmp_path / "tell.sh", tmp_path / "out"
    script.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$#" "$1" "$2" "$MOE_MESSAGE" "$MOE_ALARM" "$MOE_STEP" "$MOE_RUN" > {out}\n'
    )
    script.chmod(0o755)
    nasty = f"loss $(touch {tmp_path}/never) `touch {tmp_path}/never` ; touch {tmp_path}/never"
    said: list[str] = []
    alarm = Alarm("throughput", nasty, "look 'here'")
    run_command(f"{script} 'two words'", alarm, run_name="r", step=1200, report=said.append)
    message = f"r, step 1,200: {nasty}. Fix: look 'here'"
    assert wait_for(out).splitlines() == ["2", "two words", message, message, "throughput", "1200", "r"]
    assert not (tmp_path / "never").exists() and not said


def test_an_alert_command_that_fails_or_hangs_only_makes_a_warning(tmp_path: Path, monkeypatch) -> None:
    from moe.train.health import alert

    monkeypatch.setattr(alert, "TIMEOUT", 0.2)
    alarm = Alarm("throughput", "slow", "look")
    for command, expected in {
        "no-such-program": "could not be started",
        "false": "exit code 1",
        "sh -c 'sleep 60'": "was ended",
    }.items():
        said: list[str] = []
        start = time.monotonic()
        alert.run_command(command, alarm, run_name="r", step=1, report=said.append)
        assert time.monotonic() - start < 5  # the run does not wait
        for thread in threading.enumerate():
            if thread.name == "alert":
                thread.join(20)
        assert len(said) == 1 and expected in said[0], said


def test_wandb_gets_the_alarm_and_its_failure_is_a_warning(monkeypatch) -> None:
    import wandb

    from moe.train.health.alert import wandb_alert

    got: list[dict[str, str]] = []
    said: list[str] = []
    monkeypatch.setattr(wandb, "run", SimpleNamespace(alert=lambda **alert: got.append(alert)))
    wandb_alert(Alarm("throughput", "slow", "look"), report=said.append)
    assert got == [{"title": "throughput", "text": "slow. Fix: look"}] and not said
    monkeypatch.setattr(wandb, "run", SimpleNamespace(alert=None))
    wandb_alert(Alarm("throughput", "slow", "look"), report=said.append)
    assert len(said) == 1 and "W&B did not accept the alert" in said[0]


def test_a_run_calls_its_alert_command_and_a_wrong_one_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    from moe.train.health import detectors

    monkeypatch.setattr(detectors.DiskSpace, "seen", lambda self, row: "the disk is small")
    script, out = tmp_path / "tell.sh", tmp_path / "out"
    script.write_text(f'#!/bin/sh\necho "$1" > {out}\n')
    script.chmod(0o755)
    assert train(tiny, tmp_path, *SHORT, "max_duration=2ba", f"alert_command={script}")[0] == 0
    assert wait_for(out).startswith("tiny, step 1: the disk is small; likely cause: ")
    capsys.readouterr()
    assert train(tiny, tmp_path, "alert_command=no-such-program -x", name="refused")[0] == 2
    assert "alert_command (no-such-program -x): there is no program 'no-such-program'" in capsys.readouterr().err
