"""events.jsonl: what happened to a run, line by line."""

import json
from pathlib import Path
from typing import Any

import pytest

from moe.train.checkpointing.history import History
from moe.train.stop import StopSignal
from tests.unit.train.runs import SHORT, die_after, train


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_events_tell_of_a_kill_a_stop_and_the_end(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    settings = ["max_duration=8ba", "scheduler.t_warmup=1ba", "eval_interval=4ba", "save_interval=2ba"]
    with monkeypatch.context() as patch:
        die_after(3, patch)
        patch.setattr(
            "moe.train.checkpointing.history.History.end", lambda self, state, reason=None: None
        )  # kill -9 notes nothing
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path, *settings)
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "agreed", lambda self, device: True)
        assert train(tiny, tmp_path, *settings)[0] == 75
    code, folder = train(tiny, tmp_path, *settings)
    assert code == 0
    told = [(event["event"], event["step"]) for event in events(folder) if event["event"] != "checkpoint"]
    saved = [event["step"] for event in events(folder) if event["event"] == "checkpoint"]
    assert told == [
        ("start", 0),
        ("evaluation", 0),
        ("resume", 2),
        ("stop", 3),
        ("resume", 3),
        ("evaluation", 4),
        ("evaluation", 8),
        ("done", 8),
    ]
    assert saved == [2, 3, 4, 6, 8]
    assert [event["reached"] for event in events(folder) if "reached" in event] == [0, 3, 3]
    assert all(event["time"] for event in events(folder))
    before = (folder / "events.jsonl").read_text()
    assert train(tiny, tmp_path, *settings)[0] == 0  # complete: nothing has happened
    assert (folder / "events.jsonl").read_text() == before


def test_a_failure_is_an_event_with_its_reason(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    from moe.train.composer_model import MoEModel

    monkeypatch.setattr(MoEModel, "loss", lambda self, *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny, tmp_path, *SHORT)
    (_, last) = events(tmp_path / "run")
    assert (last["event"], last["step"], last["reason"]) == ("failed", 0, "ZeroDivisionError: division by zero")


def test_a_run_that_had_saved_a_step_it_had_not_logged_had_reached_it(tmp_path: Path) -> None:
    History(tmp_path, mine=True).begin(9, resumed=True, reached=8, ranks=1)
    assert [(event["step"], event["reached"]) for event in events(tmp_path)] == [(9, 9)]


def test_a_line_after_one_that_a_kill_left_half_written_is_whole(tmp_path: Path) -> None:
    from moe.train.checkpointing.history import append

    path = tmp_path / "events.jsonl"
    append(path, {"event": "start", "step": 0})
    path.write_bytes(path.read_bytes() + b'{"time": "2026-')
    append(path, {"event": "resume", "step": 0})
    first, _half, last = path.read_text().splitlines()
    assert json.loads(first)["event"] == "start" and json.loads(last)["event"] == "resume"


def test_a_file_of_events_that_cannot_be_written_is_told_once_and_ends_no_run(tmp_path: Path, capsys) -> None:
    from moe.train.checkpointing.history import append

    (tmp_path / "events.jsonl").mkdir()
    for path in (tmp_path / "events.jsonl", tmp_path / "no" / "alarms.jsonl"):
        append(path, {"event": "start"})
        append(path, {"event": "resume"})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"warning: {tmp_path}/events.jsonl cannot be written: Is a directory; training continues")
    assert second.startswith(f"warning: {tmp_path}/no/alarms.jsonl cannot be written: No such file or directory")
