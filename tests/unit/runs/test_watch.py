import io
import json
import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from moe.cli.main import main
from moe.cli.watch import is_there
from moe.runs import lines
from moe.runs.frame import CURVES, frame, sparkline
from moe.runs.reading import RunReader, read_run
from tests.unit.runs.folders import ALARM, CHANGED, KILLED, make_run, row, training_in


def text_of(folder: Path, width: int = 80, encoding: str = "utf-8", now: float | None = None) -> str:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding), width=width)
    console.print(frame(read_run(folder), console, now))
    console.file.flush()
    return raw.getvalue().decode(encoding)


def test_a_frame_tells_state_progress_curves_experts_checkpoint_and_alarms(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "small", state="running", steps=70, saved=(50,), events=KILLED[:3], alarms=(ALARM,))
    with training_in(folder):
        text = text_of(folder)
    assert "small  running" in text
    assert "70%  71.7k/102k tok  step 70/100" in text
    assert "0m15s left" in text  # 30 steps of 1,024 tokens at 2,048 tokens a second
    for words in ("loss", "4.181", "grad norm", "tokens/s", "val", "step 50", "2MB, 1 kept", "killed at step 70"):
        assert words in text, words
    words = " ".join(text.split())
    assert ALARM["message"] in words and ALARM["fix"] in words
    assert "layer 1" in text and "0.00 to 1.33" in text


@pytest.mark.parametrize("block", [9_000, 4 << 20])
def test_a_long_log_is_read_in_part_and_shows_the_same_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(lines, "MANY", 300)
    monkeypatch.setattr(lines, "BLOCK", block)
    rows = [{**row(step), "note": [0, '{"step": 5}']} if step % 7 == 0 else row(step) for step in range(1, 2000)]
    rows[50] |= {"train/loss": float("nan"), "optim/grad_norm": None}
    rows[70] |= {"metrics/eval/loss": 1.25}
    rows[60] |= {"metrics/eval/loss": 1.5, "tasks": {"train/loss": 9e9}}
    folder = make_run(tmp_path / "long", rows=rows, state="done")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 1999, "train/lo{"step": 1\n{"step": 2000, "train/loss": 3.0}\n')
    found = RunReader(folder, [key for _, key in CURVES]).read()
    console = Console(file=io.StringIO(), width=100)
    for run in (found, read_run(folder)):
        console.print(frame(run, console, now=run.updated))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert written[: len(written) // 2] == written[len(written) // 2 :]
    every = read_run(folder)
    assert 100 < len(found.series("odd/metric")) < 500 < len(every.series("odd/metric")), "read in part"
    assert found.last("odd/metric") == every.last("odd/metric")
    for key in ("step", *(key for _, key in CURVES), *every.validation().values()):
        assert found.series(key) == every.series(key) and found.series(key)


def test_scores_and_experts_of_long_ago_are_in_the_frame_of_a_long_log(tmp_path: Path, monkeypatch) -> None:
    """Scores are a row of their own, and so is what a user's callback logs after each step."""
    monkeypatch.setattr(lines, "MANY", 300)
    parsed: list[bytes] = []
    json_object = lines.json_object
    monkeypatch.setattr(lines, "json_object", lambda line: parsed.append(line) or json_object(line))
    rows: list[dict] = [row(step) for step in range(1, 400)]
    rows[300:300] = [{"step": 300, "tasks/arc_easy/acc": 0.25, "tasks/arc_easy/acc_stderr": 0.01}]
    rows += [{"step": step, "user/metric": 1.0} for step in range(400, 800)]
    folder = make_run(tmp_path / "long", rows=rows, max_duration="1000ba")
    found = RunReader(folder, [key for _, key in CURVES]).read()
    assert len(parsed) < 110
    frames = []
    for run in (found, read_run(folder)):
        console = Console(file=io.StringIO(), width=100)
        console.print(frame(run, console, now=run.updated))
        frames.append(console.file.getvalue())  # type: ignore[attr-defined]
    assert "arc_easy 0.2500 ± 0.01" in frames[0] and "layer 1" in frames[0]
    assert frames[0] == frames[1]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(tmp_path: Path, width: int) -> None:
    rows = [row(step, layers=40, experts=256) for step in range(2, 60, 2)]
    folder = make_run(tmp_path / ("a-long-name-" * 6), rows=rows, events=KILLED, alarms=(ALARM,))
    lines = text_of(folder, width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum("layer " in line for line in lines) == sum("▒" in line for line in lines) + 1 > 10  # one says how many


def test_ranges_stay_on_the_line_of_their_curve(tmp_path: Path) -> None:
    rows = [
        {**row(step), "optim/grad_norm": 1.2345e-5 * step, "throughput/tokens_per_sec": 123456.0 + step, "step": step}
        for step in range(2, 400_000, 4000)
    ]
    rows += [{"step": 400_000, "metrics/eval/web/loss": -12345.678}, {"step": 400_001, "metrics/eval/web/loss": 1e30}]
    folder = make_run(tmp_path / "run", rows=rows, saved=(1_234_567,), max_duration="2000000ba")
    for width in (80, 100):
        lines = text_of(folder, width).splitlines()
        ranges = [line for line in lines if re.search(r"\S to \S", line)]
        assert [line.split()[0] for line in ranges] == ["loss", "grad", "tokens/s", "val", "experts", "layer"]
        assert any("step 1,234,567" in line for line in lines)
    assert max(map(len, text_of(folder, 40).splitlines())) <= 40


def test_a_terminal_without_block_characters_gets_ascii(tmp_path: Path) -> None:
    text = text_of(make_run(tmp_path / "run", events=KILLED, alarms=(ALARM,)), encoding="ascii")
    assert "*" in text and "?" not in text


def test_a_run_that_has_only_started_and_one_without_layers_have_frames(tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    (new / "run.json").write_text(json.dumps({"run_name": "new", "state": "running"}))
    assert "the run is starting" in text_of(new)
    rows = [{"step": 2, "train/loss": 3.0, "experts/load_max": 2.5, "experts/load_min": 0.5}]
    assert "2.50 load of the busiest" in text_of(make_run(tmp_path / "plain", rows=rows))


def test_the_newest_kinds_of_alarm_are_shown_once_each(tmp_path: Path) -> None:
    alarms = tuple({**ALARM, "step": n, "name": f"kind {n % 5}", "message": f"alarm of step {n}"} for n in range(10))
    text = text_of(make_run(tmp_path / "run", alarms=alarms))
    assert [n for n in range(10) if f"alarm of step {n}" in text] == [7, 8, 9]
    assert text.count("(2 times)") == 3


def test_a_running_run_that_has_gone_quiet_says_since_when(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", state="running")
    with training_in(folder):
        assert "last written 5m00s ago" in text_of(folder, now=read_run(folder).updated + 300)


def test_one_spike_does_not_flatten_a_curve() -> None:
    values = [float(n) for n in range(50)]
    values[25] = 1e6
    drawn = sparkline(values, 50)
    assert drawn[0] == "▁" and drawn[25] == drawn[-1] == "█" and len(set(drawn)) == 8


def test_a_pipe_gets_one_frame_and_the_command_ends(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = make_run(tmp_path / "run", state="stopped", steps=60)
    assert main(["watch", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "interrupted" in out and "same command again" in out and "\x1b" not in out


def test_what_cannot_be_watched_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["watch", str(tmp_path)]) == 2
    assert "is empty" in capsys.readouterr().err
    assert main(["watch", str(make_run(tmp_path / "run")), "--every", "0"]) == 2
    assert "--every (0.0)" in capsys.readouterr().err
    assert main(["watch", str(tmp_path / "run"), "--every", "inf"]) == 2
    assert "at most 86,400 seconds" in capsys.readouterr().err


def in_terminal(folder: Path, linger: float = 60.0) -> tuple[int, int]:
    """`moe watch` in a terminal of 80 x 24; its process and the terminal's other end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="80", LINES="24")
        code = (
            f"import sys, moe.cli.watch; moe.cli.watch.LINGER = {linger}; from moe.cli.main import main; "
            f"sys.exit(main(['watch', {str(folder)!r}, '--every', '0.1']))"
        )
        os.execv(sys.executable, [sys.executable, "-c", code])
    return pid, terminal


def read_until(terminal: int, words: bytes) -> bytes:
    """What the terminal shows, up to and with `words`, or to the end of the process."""
    shown, end, ready = b"", time.monotonic() + 30, select.poll()
    ready.register(terminal, select.POLLIN)
    while words not in shown and time.monotonic() < end:
        if ready.poll(100):
            try:
                shown += os.read(terminal, 1 << 16)
            except OSError:  # the process has ended
                break
    return shown


LEAVES = b"\x1b[?1049l"  # the alternate screen


def test_ctrl_c_leaves_the_terminal_as_it_was_and_the_last_frame_on_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", state="running", steps=60)
    with training_in(folder):
        pid, terminal = in_terminal(folder)
        assert b"step 60/100" in read_until(terminal, b"layer 1")
        os.kill(pid, signal.SIGINT)
        rest = read_until(terminal, b"no such words")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    after = rest.partition(LEAVES)[2]
    assert b"step 60/100" in after and b"Traceback" not in rest


def test_the_live_view_follows_the_run_to_its_end(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", state="running", steps=60)
    with training_in(folder):
        pid, terminal = in_terminal(folder)
        read_until(terminal, b"layer 1")
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row(62)) + "\n")
        assert b"step 62/100" in read_until(terminal, b"step 62/100")
        (folder / "run.json").write_text(json.dumps({"run_name": "run", "state": "done"}))
        assert b"done" in read_until(terminal, b"no such words").partition(LEAVES)[2]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


def test_a_folder_that_is_not_there_yet_is_waited_for_and_q_leaves(tmp_path: Path) -> None:
    """D4: told once, then followed as any other."""
    pid, terminal = in_terminal(tmp_path / "run")
    assert b"there is no such run yet" in read_until(terminal, b"q leaves")
    folder = make_run(tmp_path / "made", state="running", steps=60)
    with training_in(folder):
        folder.rename(tmp_path / "run")
        assert b"step 60/100" in read_until(terminal, b"layer 1")
        os.write(terminal, b"q")
        rest = read_until(terminal, b"no such words")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert b"step 60/100" in rest.partition(LEAVES)[2] and b"Traceback" not in rest


def test_what_a_start_makes_before_run_json_is_waited_for(tmp_path: Path) -> None:
    for name in (".lock", "wandb", "step-00000100"):
        (tmp_path / name).mkdir()
        assert not is_there(tmp_path), name
    (tmp_path / "notes.txt").touch()
    assert is_there(tmp_path), "what it is can be told"


def test_q_ends_the_wait_for_a_folder(tmp_path: Path) -> None:
    """D4: nothing is made, nothing else is said."""
    pid, terminal = in_terminal(tmp_path / "never")
    read_until(terminal, b"q leaves")
    os.write(terminal, b"q")
    assert b"rror" not in read_until(terminal, b"no such words")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("state", ["done", "failed"])
def test_a_run_that_is_just_being_started_again_is_followed(tmp_path: Path, state: str) -> None:
    """D4: run.json says how the last part ended; the view stays until the next one has ended too."""
    folder = make_run(tmp_path / "run", state=state, steps=60)
    pid, terminal = in_terminal(folder)
    assert b"looking whether it is started again" in read_until(terminal, b"q leaves")
    with training_in(folder):
        (folder / "run.json").write_text(json.dumps({"run_name": "run", "state": "running"}))
        assert b"running" in read_until(terminal, b"running")
        (folder / "run.json").write_text(json.dumps({"run_name": "run", "state": "done"}))
        assert b"done" in read_until(terminal, b"no such words").partition(LEAVES)[2]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


def test_a_run_that_stays_ended_is_left(tmp_path: Path) -> None:
    """D4: after LINGER seconds."""
    pid, terminal = in_terminal(make_run(tmp_path / "run"), linger=0.3)
    assert b"done" in read_until(terminal, b"no such words").partition(LEAVES)[2]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


def test_changes_are_shown_in_words_a_row_for_each_restart(tmp_path: Path) -> None:
    """D1: "3x" for the keys of one restart, of which the last alone was named."""
    events = list(CHANGED)
    for step in (60, 70, 80):
        change = {"key": "save_interval", "was": "1ba", "now": f"{step}ba"}
        events += [{**CHANGED[2], "step": step}, {**CHANGED[3], "step": step, "changes": [change]}]
    text = " ".join(text_of(make_run(tmp_path / "one", events=CHANGED), 120).split())
    assert "changed step 50 optimizer.lr 0.002 -> 0.001, alert_command null -> <a>" in text and "2x" not in text
    text = " ".join(text_of(make_run(tmp_path / "many", events=tuple(events)), 120).split())
    assert "changed step 80 save_interval 1ba -> 80ba earlier ones: 1 (moe runs lists them)" in text
    assert "optimizer.lr 0.002" not in text
