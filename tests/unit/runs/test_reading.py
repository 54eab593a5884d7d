import fcntl
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe.cli.main import main
from moe.common.errors import InputError
from moe.runs.interruptions import interruptions
from moe.runs.lines import Lines, _blocks
from moe.runs.reading import RunReader, find_runs, read_run
from tests.tiny import in_time
from tests.unit.runs.folders import ALARM, KILLED, TOKENS_PER_STEP, make_run, row, stamp, training_in, write_lines


def test_a_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "tr')
    lines = Lines(path, list)
    assert lines.read() == [{"step": 1}]
    with open(path, "a") as file:
        file.write('ain/loss": 3.0}\n{"st')
    assert lines.read() == [{"step": 1}, {"step": 2, "train/loss": 3.0}]


def test_a_line_that_is_finished_while_the_log_is_read_is_not_read_as_its_second_half(tmp_path: Path) -> None:
    class Growing(io.BytesIO):
        def readlines(self, hint: int = -1) -> list[bytes]:
            return parts.pop(0)

    parts = [[b'{"step": 1}\n', b'{"step": 2, "at'], [b'": {"step": 3}}\n'], []]
    assert list(_blocks(Growing())) == [[b'{"step": 1}\n']]


def test_an_alarm_of_version_0_1_keeps_its_fix(tmp_path: Path) -> None:
    old = {"mend" if key == "fix" else key: value for key, value in ALARM.items()}
    run = read_run(make_run(tmp_path / "run", alarms=(old, ALARM, {"message": "damaged"})))
    assert [alarm["fix"] for alarm in run.alarms] == [ALARM["fix"], ALARM["fix"], None]


def test_rows_that_a_resume_cuts_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [{"step": n} for n in range(9)])
    lines = Lines(path, list)
    assert len(lines.read()) == 9
    write_lines(tmp_path / "aside", [{"step": 0}])
    os.replace(tmp_path / "aside", path)
    with open(path, "a") as file:
        file.write("".join(f'{{"step": {n}, "loss": 1.0}}\n' for n in range(1, 20)))
    assert [line["step"] for line in lines.read()] == list(range(20))


def test_a_line_that_is_no_object_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rows=[{"step": 1, "train/loss": 2.0}], saved=())
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "tra{"step": 2}\n[1]\nnull\n{"no": "step"}\n{"step": 3, "train/loss": "nan"}\n')
        file.write('{"step": 4, "train/loss": NaN}\n')
    run = read_run(folder)
    assert run.step == 4
    assert run.series("train/loss") == [(1, 2.0)]


@pytest.mark.parametrize("depth", [60, 900, 100_000])
def test_a_line_nested_too_deeply_is_left_out(tmp_path: Path, depth: int) -> None:
    folder = make_run(tmp_path / "run", rows=[{"step": 1, "train/loss": 2.0}], saved=(50,))
    deep = '{"step": 2, "event": "stop", "versions": ' + '{"a":' * depth + "1" + "}" * depth + "}\n"
    for name in ("metrics.jsonl", "events.jsonl", "alarms.jsonl", "step-00000050/manifest.json"):
        with open(folder / name, "a") as file:
            file.write(deep)
    (folder / "config.yaml").write_text(f"model: {'[' * depth}{']' * depth}")
    run = read_run(folder)
    assert (run.metrics.rows, run.events, run.alarms, run.manifest, run.config) == (1, [], [], {}, {})


@pytest.mark.parametrize(
    ("noted", "held", "state"),
    [
        ("running", True, "running"),
        ("running", False, "interrupted"),  # killed: nobody was left to note it
        ("stopped", False, "interrupted"),
        ("done", False, "done"),
        ("failed", False, "failed"),
        ("failed", True, "failed"),
    ],
)
def test_the_state_is_what_was_noted_unless_the_process_is_gone(
    tmp_path: Path, noted: str, held: bool, state: str
) -> None:
    folder = make_run(tmp_path / "run", state=noted)
    if held:
        with training_in(folder):
            assert read_run(folder).state == state
    else:
        (folder / ".lock").touch()
        assert read_run(folder).state == state


def test_a_run_of_another_machine_counts_as_running_while_it_writes(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", state="running", host="elsewhere")
    assert read_run(folder).state == "running"
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    assert read_run(folder).state == "interrupted"


def test_reading_leaves_lock_and_folder_as_they_are(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", state="running")
    before = sorted(folder.rglob("*"))
    reader = RunReader(folder)
    reader.read()
    assert sorted(folder.rglob("*")) == before
    with open(folder / ".lock", "a+") as lock:
        reader.read()
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # would raise if a reader held it


def test_a_run_that_has_only_started_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"id": "1", "run_name": "new", "state": "running"}))
    with training_in(folder):
        run = read_run(folder)
    assert (run.name, run.state, run.step, run.total_steps, run.tokens, run.saved) == (
        "new",
        "running",
        0,
        None,
        None,
        [],
    )


def test_what_is_no_run_folder_is_told_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    make_run(tmp_path / "runs" / "first")
    damaged = make_run(tmp_path / "damaged")
    (damaged / "run.json").write_text('{"id": ')
    for name, words in {
        "nowhere": "there is no such folder",
        "empty": "is empty",
        "other": "has no run.json",
        "other/file": "is a file",
        "runs": r"holds some \(first\)",
        "damaged": "is damaged",
    }.items():
        with pytest.raises(InputError, match=words):
            read_run(tmp_path / name)
    with pytest.raises(InputError, match="runs/RUN_NAME"):
        read_run("s3://bucket/run")


def test_metrics_of_layers_are_found_under_either_name(tmp_path: Path) -> None:
    rows = [{"step": 1, "experts/load_max/layer_10": 2.0, "experts/load_max/layer_02": 1.0, "a/layer_00/dead": 0.0}]
    assert read_run(make_run(tmp_path / "run", rows=rows)).layered() == {
        "experts/load_max": {2: "experts/load_max/layer_02", 10: "experts/load_max/layer_10"},
        "a/dead": {0: "a/layer_00/dead"},
    }


def test_tokens_follow_from_step_and_config(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", max_duration=f"{100 * TOKENS_PER_STEP - 1}tok", rows=[row(30)], saved=()))
    assert (run.total_steps, run.tokens) == (100, 30 * TOKENS_PER_STEP)


def test_find_runs_finds_a_run_and_the_runs_in_a_folder(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "runs" / "a"), make_run(tmp_path / "b")
    (tmp_path / "runs" / "no-run").mkdir()
    assert find_runs([tmp_path / "runs", second, tmp_path / "nowhere"]) == [first, second]


def test_a_kill_costs_the_time_until_the_resume_and_the_steps_trained_twice(tmp_path: Path) -> None:
    (found,) = interruptions(read_run(make_run(tmp_path / "run", events=KILLED)))
    assert (found.how, found.step, found.resumed_step, found.replayed) == ("killed", 70, 50, 20)
    # the last event was at 25 s, step 50; 20 steps of half a second later it was killed, at 35 s; it went on at 95 s
    assert found.at.isoformat() == "2026-01-01T00:00:35+00:00"
    assert (found.away, found.replay, found.cost) == (60.0, 10.0, 70.0)


def test_a_stop_that_saved_replays_nothing_and_a_finished_run_was_not_interrupted(tmp_path: Path) -> None:
    events = (
        {"time": stamp(0), "event": "start", "step": 0},
        {"time": stamp(20), "event": "stop", "step": 40, "reason": "SIGTERM"},
        {"time": stamp(50), "event": "resume", "step": 40, "reached": 40},
        {"time": stamp(70), "event": "done", "step": 80},
        {"time": stamp(99), "event": "resume", "step": 80, "reached": 80},  # to a longer max_duration
    )
    (found,) = interruptions(read_run(make_run(tmp_path / "run", events=events)))
    assert (found.how, found.reason, found.replayed, found.away) == ("stopped", "SIGTERM", 0, 30.0)


def test_events_without_time_or_step_are_survived(tmp_path: Path) -> None:
    events = (
        {"event": "start"},
        {"event": "checkpoint", "time": "soon"},
        {"event": "resume", "time": None, "step": "x"},
    )
    assert interruptions(read_run(make_run(tmp_path / "run", events=events))) == []


WRONG: tuple[object, ...] = (None, "text", -1, float("inf"), [], {"a": 1}, 10**400)


def damage(path: Path) -> None:
    """Adds rows in which one value is of a wrong kind, each value of two rows in turn, and a sound row after each."""
    lines = path.read_text().splitlines()
    rows = [json.loads(line) for line in (lines[0], lines[1 % len(lines)])]
    for sound in rows:
        for key in sound:
            for value in WRONG:
                lines += [json.dumps({**sound, key: value}), lines[0]]
    path.write_text("\n".join(lines) + "\n")


def test_rows_with_values_of_the_wrong_kind_end_no_command(tmp_path: Path, capsys) -> None:
    other = make_run(tmp_path / "other")
    folder = make_run(tmp_path / "run", events=KILLED, alarms=(ALARM,))
    for name in ("metrics.jsonl", "events.jsonl", "alarms.jsonl"):
        damage(folder / name)
    assert main(["watch", str(folder), "--once"]) == 0
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert main(["diff", str(folder), str(other)]) == 0


@pytest.mark.parametrize("wrong", ["text", -1, [1, "a"], {"a": 1}, True, float("inf")], ids=str)
def test_a_manifest_and_a_config_of_the_wrong_kind_are_survived(tmp_path: Path, capsys, wrong: object) -> None:
    other = make_run(tmp_path / "other")
    data: list[object] = [wrong, {"local": wrong}, {"streams": wrong}, {"streams": {"a": wrong}}]
    for number, train_data in enumerate(data):
        folder = make_run(tmp_path / f"run{number}", train_data=train_data)
        assert main(["diff", str(folder), str(other)]) == 0
        manifest = json.loads((folder / "step-00000100/manifest.json").read_text())
        for key in manifest:
            (folder / "step-00000100/manifest.json").write_text(json.dumps({**manifest, key: wrong}))
            assert main(["watch", str(folder), "--once"]) == 0
        manifest["files"]["state.pt"]["bytes"] = wrong
        (folder / "step-00000100/manifest.json").write_text(json.dumps(manifest))
        assert main(["watch", str(folder), "--once"]) == 0


def test_looking_at_runs_imports_nothing_heavy(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", events=KILLED)
    other = make_run(tmp_path / "other")
    page = str(tmp_path / "page.html")
    commands = [["watch", str(folder), "--once"], ["runs", str(tmp_path)], ["diff", str(folder), str(other)]]
    commands.append(["report", str(folder), "--out", page])
    code = f"""
import sys
from moe.cli.main import main
assert [main(command) for command in {commands!r}] == [0, 0, 0, 0]
print([name for name in ("torch", "composer", "streaming", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "events.jsonl", ".lock", "run.json"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(tmp_path: Path, name: str, capsys) -> None:
    run = make_run(tmp_path / "a", state="running")
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with in_time():
        code = main(["runs", str(tmp_path)])
    assert code == (2 if name == "run.json" else 0)
    told = capsys.readouterr().err
    assert ("no regular file" in told) == (name not in ("config.yaml", ".lock")) and "Traceback" not in told


def test_a_report_is_not_written_into_a_pipe(tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "r.html")
    with in_time(20):
        assert main(["report", str(make_run(tmp_path / "a")), "--out", str(tmp_path / "r.html")]) == 2
    assert "r.html cannot be replaced (a pipe" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["!!bool abc", "!!timestamp abc"])
def test_a_config_that_yaml_stumbles_over_counts_as_absent(tmp_path: Path, value: str) -> None:
    (make_run(tmp_path / "a") / "config.yaml").write_text(f"tokenizer: {value}\n")
    assert read_run(tmp_path / "a").config == {}
    assert main(["runs", str(tmp_path), "--json"]) == 0
